"""The sides that `tickring bench compare` knows."""

from collections.abc import Mapping
from dataclasses import replace

from client.load.compare import Side
from client.load.figures import RunFigures
from client.load.flows import Server
from client.load.options import FlowSpec
from client.load.session import Session

Named = tuple[str, Side]


def against_plain(session: Session, spec: FlowSpec, seconds: float) -> tuple[Named, Named]:
    """Batched calls, and those that share no batch."""
    batched = session.flow(replace(spec, name="batched"))
    plain = session.flow(replace(spec, name="plain", bypass_batching=True))
    return (
        ("batched", lambda title: session.run(title, [batched], seconds)),
        ("plain", lambda title: session.run(title, [plain], seconds)),
    )


def against_server(session: Session, spec: FlowSpec, seconds: float, other: Server) -> tuple[Named, Named]:
    """This server, and another one that has the same model."""
    flow = session.flow(spec)
    return (
        (session.report.target, lambda title: session.run(title, [flow], seconds)),
        (other.target, lambda title: session.run_at(other, title, [flow], seconds)),
    )


def against_settings(
    session: Session, spec: FlowSpec, seconds: float, settings: Mapping[str, str | None]
) -> tuple[Named, Named]:
    """The server as it is, and with other settings, which are taken back each time."""
    flow = session.flow(spec)

    def changed(title: str) -> RunFigures:
        session.change_settings(dict(settings))
        try:
            return session.run(title, [flow], seconds)
        finally:
            session.change_settings(dict.fromkeys(settings))

    return (
        ("as it is", lambda title: session.run(title, [flow], seconds)),
        (", ".join(f"{path}={value}" for path, value in settings.items()), changed),
    )
