"""The options that several commands share, each said once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol, TypedDict, TypeVar

import typer

from client.admin import AdminClient
from client.channel import TlsFiles
from client.client import MAX_TIMEOUT_S, Client
from client.errors import InvalidRequest
from client.priority import ALLOWED, parse_priority


def _checked_priority(value: str | None) -> str | None:
    try:
        parse_priority(value)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message) from None
    return value


def _checked_timeout(value: float | None) -> float | None:
    if value is not None and not 0 < value <= MAX_TIMEOUT_S:
        raise typer.BadParameter(f"{value:g} is not allowed; over 0, up to {MAX_TIMEOUT_S:g}")
    return value


Target = Annotated[str, typer.Option(envvar="TICKRING_TARGET", metavar="HOST:PORT", help="The server.")]
AdminTarget = Annotated[
    str, typer.Option("--target", envvar="TICKRING_ADMIN_TARGET", metavar="HOST:PORT", help="The admin port.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt; implied by the other --tls options.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, metavar="FILE", help="PEM file of the CA that signed the server."
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, metavar="FILE", help="PEM certificate of this client."),
]
TlsKey = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="PEM key of --tls-cert.")
]
Token = Annotated[
    str | None,
    typer.Option(envvar="TICKRING_TOKEN", metavar="TOKEN", help="Sent as 'authorization: Bearer TOKEN'."),
]
ClearText = Annotated[
    bool,
    typer.Option("--allow-clear-text", help="Send a token without TLS to another machine."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object or list per line.")]

Model = Annotated[str, typer.Option(metavar="NAME", help="The server's default where absent.")]
Version = Annotated[
    str, typer.Option("--model-version", metavar="N", help="As the server routes where absent.")
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="[NAME=]FILE",
        help="A .npy or .csv file, or - for standard input; NAME where the model has several inputs, once"
        " for each. The .csv has the numbers of one item per line. One item needs no batch dimension.",
    ),
]
Priority = Annotated[
    str | None,
    typer.Option(
        callback=_checked_priority, metavar="CLASS", help=f"{ALLOWED}; the server's choice where absent."
    ),
]
Timeout = Annotated[
    float | None, typer.Option(callback=_checked_timeout, metavar="SECONDS", help="For each request, in all.")
]
Outputs = Annotated[
    list[str] | None, typer.Option("--output", metavar="NAME", help="Repeatable; all outputs where absent.")
]
RoutingKey = Annotated[
    str, typer.Option(metavar="KEY", help="Splits traffic between versions, at most 128 bytes.")
]


class RequestOptions(TypedDict):
    """What `predict` and `stream` pass on to every request."""

    model: str
    version: str
    priority: str | None
    timeout_s: float | None
    outputs: Sequence[str]
    routing_key: str


Opened = TypeVar("Opened", covariant=True)


class _Opens(Protocol[Opened]):
    """`Client` or `AdminClient`."""

    def __call__(
        self, target: str, *, tls: TlsFiles | None, token: str | None, allow_clear_text: bool
    ) -> Opened: ...


def open_client(
    target: str,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token: str | None,
    allow_clear_text: bool,
) -> Client:
    """The client that the common options describe. Raises `typer.BadParameter`."""
    return _open(Client, target, _tls_files(tls, ca, cert, key), token, allow_clear_text)


def open_admin_client(
    target: str,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token: str | None,
    allow_clear_text: bool,
) -> AdminClient:
    """The same for the admin port. Raises `typer.BadParameter`."""
    return _open(AdminClient, target, _tls_files(tls, ca, cert, key), token, allow_clear_text)


def _tls_files(tls: bool, ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    try:
        return TlsFiles(ca, cert, key) if tls or ca or cert or key else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tls-cert, --tls-key") from None


def _open(
    client: _Opens[Opened], target: str, tls: TlsFiles | None, token: str | None, allow_clear_text: bool
) -> Opened:
    try:
        return client(target, tls=tls, token=token, allow_clear_text=allow_clear_text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--token, --allow-clear-text") from None


def request_options(
    model: str,
    version: str,
    priority: str | None,
    timeout_s: float | None,
    outputs: Sequence[str] | None,
    routing_key: str,
) -> RequestOptions:
    """The options as every request takes them."""
    return RequestOptions(
        model=model,
        version=version,
        priority=priority,
        timeout_s=timeout_s,
        outputs=outputs or (),
        routing_key=routing_key,
    )
