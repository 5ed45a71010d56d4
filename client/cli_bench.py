"""`tickring bench`: how fast, how steady, how fair. See docs/benchmarks.md.

Exit 0: every promise was kept; 1: one was missed, or there is no result; 130: interrupted.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.channel import DEFAULT_TARGET
from client.cli_admin import updates_of
from client.cli_options import (
    ClearText,
    Json,
    Outputs,
    Priority,
    Target,
    Timeout,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    Version,
    open_admin_client,
    open_client,
)
from client.errors import PredictionError
from client.load.arrivals import ALLOWED, Arrivals, BadArrivals, parse_arrivals
from client.load.flows import STREAM, UNARY, Server
from client.load.options import MAX_IN_FLIGHT, MAX_ROWS, BadFlow, FlowSpec, Options, parse_flow

if TYPE_CHECKING:
    from client.load.session import Session

app = typer.Typer(
    help="Measures a server under load: latency from the instant at which each call should have been sent.",
    rich_markup_mode=None,
)

_FOLDER = Path("tickring-bench")
_EXTRA = "tickring bench needs more packages: pip install 'tickring[bench]'"


class Mode(StrEnum):
    """How calls are made."""

    UNARY = UNARY
    STREAM = STREAM


@dataclass(frozen=True)
class Common:
    """Options of every scenario."""

    target: Target = DEFAULT_TARGET
    model: Annotated[str, typer.Option(metavar="NAME", help="The server's default where absent.")] = ""
    version: Version = ""
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NAME=]FILE",
            help="A .npy or .csv of rows to send; drawn numbers where absent.",
        ),
    ] = None
    outputs: Outputs = None
    rows: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Of each request.")] = 1
    mode: Annotated[Mode, typer.Option(help="An RPC for each call, or messages on RPC streams.")] = Mode.UNARY
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Of each process.")] = 1
    processes: Annotated[int, typer.Option(min=1, max=64, help="Of the generator.")] = 1
    priority: Priority = None
    timeout: Timeout = None
    seconds: Annotated[float, typer.Option(min=1, max=86_400 * 7, help="Of each measurement.")] = 10.0
    warm_up: Annotated[float, typer.Option(min=0, max=3600, help="Seconds before it, not counted.")] = 1.0
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and drawn numbers.")] = 0
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="A promise: p50_ms, p95_ms, p99_ms, p999_ms, max_ms, min_rps, max_error_ratio; repeatable.",
        ),
    ] = None
    slo_file: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="A TOML file with a table [slo], as the server's.",
        ),
    ] = None
    max_lag: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=10_000,
            metavar="MS",
            help="How late the generator may be, p99, or nothing is reported.",
        ),
    ] = 10.0
    admin_target: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The admin port: puts the server's settings into the report."),
    ] = None
    out: Annotated[Path, typer.Option(file_okay=False, metavar="DIR", help="Where reports go.")] = _FOLDER
    no_files: Annotated[bool, typer.Option("--no-files", help="Write no report.")] = False
    tls: Tls = False
    tls_ca: TlsCa = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    token: Token = None
    allow_clear_text: ClearText = False
    as_json: Json = False


def _scenario(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `Common` behind its own; it gets them as its first argument."""
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
        )
        for each in fields(Common)
    ]
    names = {each.name for each in shared}

    def with_common(**values: Any) -> None:
        common = Common(**{name: value for name, value in values.items() if name in names})
        command(common, **{name: value for name, value in values.items() if name not in names})

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own] + shared
    with_common.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_common.__annotations__ = {each.name: each.annotation for each in parameters}
    with_common.__name__, with_common.__doc__ = command.__name__, command.__doc__
    return with_common


Rate = Annotated[str, typer.Option(metavar="ARRIVALS", help=f"Calls per second: {ALLOWED}.")]
MaybeRate = Annotated[str | None, typer.Option(metavar="ARRIVALS", help=f"{ALLOWED}; else a closed loop.")]
InFlight = Annotated[int, typer.Option(min=1, max=MAX_IN_FLIGHT, help="Calls at any time, of all processes.")]
Metrics = Annotated[
    str | None, typer.Option(metavar="URL", help="The server's /metrics, to watch what it needs.")
]
Flows = Annotated[
    list[str] | None,
    typer.Option(
        "--flow",
        metavar="'KEY=VALUE …'",
        help="One of several flows side by side: rate= or in_flight=, and name=, priority=, timeout=, rows=,"
        " mode=, connections=, model=, version=; repeatable, promises are about the first.",
    ),
]


@app.command(epilog="Example: tickring bench latency --mode stream --slo p99_ms=5")
@_scenario
def latency(common: Common, in_flight: InFlight = 1) -> None:
    """Keep a number of calls in flight: one, unless told otherwise, sees an idle server."""
    _hold("latency", common, {"in_flight": in_flight}, [replace(_base(common), in_flight=in_flight)])


@app.command(
    epilog="Example: tickring bench load --rate 200 --seconds 60 --slo p99_ms=100 --slo max_error_ratio=0.01"
)
@_scenario
def load(common: Common, rate: Rate = "200", flows: Flows = None) -> None:
    """Offer calls at a rate, whatever becomes of them, and hold it."""
    _hold("load", common, {"rate": rate, "flows": flows}, _flows(common, rate, flows))


@app.command(
    epilog="Example: tickring bench soak --rate 150 --seconds 3600 --metrics http://127.0.0.1:8002/metrics"
)
@_scenario
def soak(
    common: Common,
    rate: Rate = "150",
    flows: Flows = None,
    metrics: Metrics = None,
) -> None:
    """Hold a rate for long: latency over time, and the server's memory."""
    from client.load import soak as soaking  # heavy

    session = _session("soak", common, {"rate": rate, "flows": flows, "metrics": metrics})
    made = [session.flow(spec) for spec in _flows(common, rate, flows)]
    _finish(session, lambda: soaking.soak(session, made, common.seconds, _objectives(common), metrics))


@app.command(epilog="Example: tickring bench stress --rate 100 --factor 2 --slo p99_ms=20")
@_scenario
def stress(
    common: Common,
    rate: Rate = "100",
    factor: Annotated[float, typer.Option(min=1.05, max=10, help="From one level to the next.")] = 2.0,
    highest: Annotated[float, typer.Option(min=1, help="No level is above this rate.")] = 100_000.0,
) -> None:
    """Raise the rate until a promise breaks, and find the knee."""
    from client.load import objectives, scenarios  # heavy

    session = _session("stress", common, {"rate": rate, "factor": factor, "highest": highest})
    flow = session.flow(replace(_base(common), arrivals=_arrivals(rate)))
    slo = _objectives(common) or {name: objectives.DEFAULTS[name] for name in ("p99_ms", "max_error_ratio")}
    _finish(
        session,
        lambda: scenarios.stress(
            session, session.report, flow, common.seconds, slo, factor=factor, highest_per_s=highest
        ),
    )


@app.command(epilog="Example: tickring bench compare --bypass --in-flight 64 --rounds 8")
@_scenario
def compare(
    common: Common,
    bypass: Annotated[bool, typer.Option("--bypass", help="Against calls that share no batch.")] = False,
    other: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Against another server.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Against other settings, by --admin-target; repeatable."
        ),
    ] = None,
    rate: MaybeRate = None,
    in_flight: InFlight = 32,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Each measures both sides.")] = 5,
) -> None:
    """Measure two sides in turn, and say by how much they differ, with confidence intervals.

    One of --bypass, --other and --set says what the other side is. A closed loop unless --rate is given.
    """
    from client.load import comparing  # heavy
    from client.load.compare import compare as compare_sides

    if (bypass, bool(other), bool(settings)).count(True) != 1:
        raise typer.BadParameter("needed is one of them", param_hint="--bypass, --other, --set")
    if settings and not common.admin_target:
        raise typer.BadParameter("settings are changed at the admin port", param_hint="--admin-target")
    told = {
        "bypass": bypass,
        "other": other,
        "set": settings,
        "rate": rate,
        "in_flight": in_flight,
        "rounds": rounds,
    }
    spec = _base(common)
    spec = replace(spec, arrivals=_arrivals(rate)) if rate else replace(spec, in_flight=in_flight)
    session = _session("compare", common, told)
    if bypass:
        sides = comparing.against_plain(session, spec, common.seconds)
    elif other:
        sides = comparing.against_server(
            session, spec, common.seconds, replace(_server(common), target=other)
        )
    else:
        sides = comparing.against_settings(session, spec, common.seconds, updates_of(settings or []))
    _finish(session, lambda: compare_sides(session.report, *sides, rounds))


@app.command(epilog="Example: tickring bench mixed --rate 150 --bulk-in-flight 256 --slo p99_ms=100")
@_scenario
def mixed(
    common: Common,
    rate: Rate = "150",
    bulk_rate: MaybeRate = None,
    bulk_in_flight: InFlight = 256,
    bulk_priority: Priority = "background_tasks",
    bulk_rows: Annotated[int, typer.Option(min=1, max=MAX_ROWS, help="Of each request of bulk.")] = 1,
) -> None:
    """Urgent calls alone, and then beside bulk: what does it cost them, and does bulk get on?"""
    from client.load import scenarios  # heavy

    told = {
        "rate": rate,
        "bulk_rate": bulk_rate,
        "bulk_in_flight": bulk_in_flight,
        "bulk_priority": bulk_priority,
    }
    session = _session("mixed", common, {**told, "bulk_rows": bulk_rows})
    urgent = replace(
        _base(common),
        name="urgent",
        priority=common.priority or "real_time_trading",
        arrivals=_arrivals(rate),
    )
    bulk = replace(_base(common), name="bulk", priority=bulk_priority, rows=bulk_rows)
    if bulk_rate:
        bulk = replace(bulk, arrivals=_arrivals(bulk_rate, "--bulk-rate"))
    else:
        bulk = replace(bulk, in_flight=bulk_in_flight)
    flows = session.flow(urgent), session.flow(bulk)
    _finish(
        session,
        lambda: scenarios.mixed(session, session.report, *flows, common.seconds, _objectives(common)),
    )


@app.command(epilog="Example: tickring bench validate --seconds 60 --metrics http://127.0.0.1:8002/metrics")
@_scenario
def validate(
    common: Common,
    target_rate: Annotated[float, typer.Option(min=1, help="Calls per second of every day.")] = 200.0,
    peak_rate: Annotated[float, typer.Option(min=1, help="Calls per second at the peak.")] = 500.0,
    metrics: Metrics = None,
) -> None:
    """Check what trading platforms ask for: latency, rates, errors, and with --metrics resources."""
    from client.load import objectives, scenarios  # heavy
    from client.load.soak import watch_resources

    session = _session(
        "validate", common, {"target_rate": target_rate, "peak_rate": peak_rate, "metrics": metrics}
    )
    flow = session.flow(replace(_base(common), arrivals=Arrivals("poisson", target_rate)))
    slo = {**objectives.DEFAULTS, **_objectives(common)}

    def run() -> None:
        with watch_resources(metrics, session.report):
            scenarios.validate(
                session,
                session.report,
                flow,
                common.seconds,
                slo,
                target_per_s=target_rate,
                peak_per_s=peak_rate,
            )

    _finish(session, run)


def _hold(scenario: str, common: Common, told: Mapping[str, Any], specs: list[FlowSpec]) -> None:
    from client.load import scenarios  # heavy

    session = _session(scenario, common, told)
    flows = [session.flow(spec) for spec in specs]
    _finish(
        session, lambda: scenarios.hold(session, session.report, flows, common.seconds, _objectives(common))
    )


def _session(scenario: str, common: Common, own: Mapping[str, Any]) -> "Session":
    access = (
        common.tls,
        common.tls_ca,
        common.tls_cert,
        common.tls_key,
        common.token,
        common.allow_clear_text,
    )
    client, open_admin = open_client(common.target, *access), None
    if common.admin_target is not None:
        open_admin = partial(open_admin_client, common.admin_target, *access)
    try:
        from client.load.session import Session  # heavy, and needs what the extra brings
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{_EXTRA} (there is no {error.name})") from None

    hidden = {"token", "as_json", "out", "no_files", "admin_target"}
    arguments = {**own, **{name: value for name, value in asdict(common).items() if name not in hidden}}
    options = Options(
        server=_server(common),
        inputs=common.inputs or [],
        outputs=common.outputs or [],
        processes=common.processes,
        warm_up_s=common.warm_up,
        seed=common.seed,
        max_lag_ms=common.max_lag,
        folder=None if common.no_files else common.out,
        as_json=common.as_json,
    )
    told = {name: _plain(value) for name, value in arguments.items()}
    return Session(scenario, options, told, client, open_admin)


def _finish(session: "Session", scenario: Callable[[], object]) -> None:
    if code := session.finish(scenario):
        raise typer.Exit(code)


def _server(common: Common) -> Server:
    ca, cert, key = (
        None if path is None else str(path) for path in (common.tls_ca, common.tls_cert, common.tls_key)
    )
    return Server(common.target, common.tls, ca, cert, key, common.token)


def _base(common: Common) -> FlowSpec:
    return FlowSpec(
        model=common.model,
        version=common.version,
        priority=common.priority,
        timeout_s=common.timeout,
        rows=common.rows,
        mode=common.mode.value,
        connections=common.connections,
    )


def _flows(common: Common, rate: str, flows: list[str] | None) -> list[FlowSpec]:
    base = _base(common)
    if not flows:
        return [replace(base, arrivals=_arrivals(rate))]
    try:
        specs = [parse_flow(text, base) for text in flows]
    except (BadFlow, BadArrivals) as error:
        raise typer.BadParameter(str(error), param_hint="--flow") from None
    except PredictionError as error:
        raise typer.BadParameter(error.message, param_hint="--flow") from None
    names = [spec.name for spec in specs]
    return [
        spec if names.count(spec.name) == 1 else replace(spec, name=f"{spec.name} {number}")
        for number, spec in enumerate(specs, 1)
    ]


def _arrivals(text: str, option: str = "--rate") -> Arrivals:
    try:
        return parse_arrivals(text)
    except BadArrivals as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _objectives(common: Common) -> dict[str, float]:
    from client.load import objectives  # heavy

    try:
        found = objectives.read(common.slo_file) if common.slo_file else {}
        return {**found, **objectives.parse(common.slo or [])}
    except objectives.BadObjectives as error:
        raise typer.BadParameter(str(error), param_hint="--slo, --slo-file") from None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
