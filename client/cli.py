"""The `tickring` command. Exit 0: done, 1: failed, 2: misuse; an error is one line on standard error."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from client import cli_admin, cli_bench, cli_status
from client.channel import DEFAULT_TARGET
from client.cli_input import BadInput, Source, arrays_for, read_sources
from client.cli_options import (
    ClearText,
    Inputs,
    Json,
    Model,
    Outputs,
    Priority,
    RequestOptions,
    RoutingKey,
    Target,
    Timeout,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    Version,
    open_client,
    request_options,
)
from client.cli_output import (
    StreamReport,
    model_json,
    one_line,
    prediction_json,
    print_json,
    print_models,
    print_prediction,
)
from client.client import Client
from client.errors import PredictionError
from client.load.errors import LoadFailed
from client.model_info import ModelInfo
from client.new_token import NewRole, new_token
from client.stream import MAX_IN_FLIGHT

DONE, FAILED, MISUSED = 0, 1, 2

app = typer.Typer(
    name="tickring",
    help="Asks a tickring server for predictions, and how it is.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_admin.app, name="admin")
app.add_typer(cli_bench.app, name="bench")


@app.command(
    epilog="Example: tickring predict --model sp500_direction --input window=window.npy --priority high"
)
def predict(
    inputs: Inputs,
    model: Model = "",
    version: Version = "",
    priority: Priority = None,
    timeout: Timeout = None,
    outputs: Outputs = None,
    routing_key: RoutingKey = "",
    request_id: Annotated[str, typer.Option(help="Comes back unchanged, at most 128 bytes.")] = "",
    target: Target = DEFAULT_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Send all rows of the input as one request and print the outputs."""
    client = open_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    options = request_options(model, version, priority, timeout, outputs, routing_key)
    asyncio.run(_predict(client, read_sources(inputs), options, request_id, as_json))


@app.command(
    epilog="Example: tickring stream --input windows.npy --in-flight 64 --json | jq .outputs.regression_mean"
)
def stream(
    inputs: Inputs,
    model: Model = "",
    version: Version = "",
    priority: Priority = None,
    timeout: Timeout = None,
    outputs: Outputs = None,
    routing_key: RoutingKey = "",
    in_flight: Annotated[
        int, typer.Option(min=1, max=MAX_IN_FLIGHT, help="Rows sent and not yet answered, at most.")
    ] = 32,
    target: Target = DEFAULT_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Send each row of the input as a request of its own, over one RPC stream.

    Prints one line per row, as they are answered, and a summary of the round trips on standard error. A
    row that fails does not stop the others; the exit code is then 1.
    """
    client = open_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    options = request_options(model, version, priority, timeout, outputs, routing_key)
    asyncio.run(_stream(client, read_sources(inputs), options, in_flight, as_json))


@app.command(epilog="Example: tickring health && echo the server is ready")
def health(
    service: Annotated[
        str, typer.Argument(help="A gRPC service or model; the whole server where absent.")
    ] = "",
    target: Target = DEFAULT_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Print the serving status; exit 0 only when it is SERVING."""
    client = open_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    status = asyncio.run(_health(client, service))
    if as_json:
        print_json({"service": service, "status": status})
    else:
        print(status)
    if status != "SERVING":
        raise typer.Exit(FAILED)


@app.command(epilog="Example: tickring models --json | jq -r .[].name")
def models(
    target: Target = DEFAULT_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """List the models with their versions, inputs and outputs."""
    client = open_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    found = asyncio.run(_models(client))
    if as_json:
        print_json([model_json(model) for model in found])
    else:
        print_models(found)


@app.command(epilog="Example: tickring token engine-1 --role predict 2> engine-1.token >> tokens.toml")
def token(
    name: Annotated[str, typer.Argument(help="Whose it is: letters, digits, '.', '_' and '-'.")],
    roles: Annotated[list[NewRole], typer.Option("--role", help="What it is for; repeatable.")],
    expires_days: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Good for so long; for ever where absent.")
    ] = None,
) -> None:
    """Make a token: it goes to standard error, its lines for the server's file to standard output.

    The file holds only what the token hashes to, so this is the one time that it is shown.
    """
    try:
        made = new_token(name, roles, expires_days, time.time())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print(made.entry)
    print(made.token, file=sys.stderr)


app.command(epilog="Example: tickring stats --slo")(cli_status.stats)
app.command(epilog="Example: tickring top --once")(cli_status.top)


async def _predict(
    client: Client, sources: Sequence[Source], options: RequestOptions, request_id: str, as_json: bool
) -> None:
    async with client:
        arrays = arrays_for(await client.model(options["model"]), sources)
        started = time.perf_counter()
        prediction = await client.predict_unary(arrays, request_id=request_id, **options)
        round_trip_s = time.perf_counter() - started
    if as_json:
        print_json(prediction_json(prediction, round_trip_s))
    else:
        print_prediction(prediction, round_trip_s)


async def _stream(
    client: Client, sources: Sequence[Source], options: RequestOptions, in_flight: int, as_json: bool
) -> None:
    report = StreamReport(as_json)
    async with client:
        arrays = arrays_for(await client.model(options["model"]), sources)
        rows = iter(range(len(next(iter(arrays.values())))))

        async def send_rows() -> None:
            for row in rows:  # shared: each worker takes the next row when its last is answered
                inputs = {name: array[row : row + 1] for name, array in arrays.items()}
                started = time.perf_counter()
                try:
                    prediction = await client.predict(inputs, **options)
                except PredictionError as error:
                    report.failed(row, error)
                else:
                    report.answered(row, prediction, time.perf_counter() - started)

        await asyncio.gather(*(send_rows() for _ in range(in_flight)))
    print(report.summary(), file=sys.stderr)
    if report.failures:
        _complain(f"{report.failures} rows failed, the first: {report.first_failure}")
        raise typer.Exit(FAILED)


async def _health(client: Client, service: str) -> str:
    async with client:
        return await client.health(service)


async def _models(client: Client) -> list[ModelInfo]:
    async with client:
        return await client.models()


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code; every error is one line on standard error."""
    try:
        code = app(args=list(arguments), prog_name="tickring", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "tickring"
        _complain(f"{error.format_message()} (see '{command} --help')")
        return error.exit_code
    except BadInput as error:
        _complain(str(error))
        return MISUSED
    except (PredictionError, LoadFailed) as error:
        _complain(str(error))
        return FAILED
    except Exception as error:  # our bug; a shell script still gets one line and an exit code
        _complain(f"{type(error).__name__}: {error}")
        return FAILED
    return code if isinstance(code, int) else DONE


def main() -> NoReturn:
    """The console entry point."""
    sys.exit(run(sys.argv[1:]))


def _complain(message: str) -> None:
    print(f"tickring: {one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    main()
