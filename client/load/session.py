"""One `tickring bench` from the first question to the report's files."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from client.admin import AdminClient
from client.cli_input import BadInput, arrays_for, read_sources
from client.cli_output import print_json
from client.client import Client
from client.load import generator
from client.load.context import here
from client.load.errors import LoadFailed
from client.load.figures import RunFigures, figures
from client.load.flows import Flow, Load, Server
from client.load.options import FlowSpec, Options
from client.load.page import write_page
from client.load.payloads import drawn, requests
from client.load.report import Report, print_report, write_json
from client.model_info import ModelInfo
from client.priority import parse_priority

DONE, MISSED, INTERRUPTED = 0, 1, 130


class Interrupted(Exception):
    """Somebody wants no more of it; what was measured is in the report."""


class Session:
    """Offers loads to a server, and keeps the report of it."""

    def __init__(
        self,
        scenario: str,
        options: Options,
        arguments: Mapping[str, Any],
        client: Client,
        open_admin: Callable[[], AdminClient] | None,
    ) -> None:
        """Asks the server for its models, and its settings where there is an admin port to open.

        Raises:
            PredictionError: it does not answer.
            BadInput: the input files cannot be read.
        """
        self._options = options
        self.server = options.server
        self.report = Report(scenario, options.server.target, here(), arguments)
        self._sources = read_sources(options.inputs)
        # One loop for all: grpc.aio knows no second one in a process.
        self._runner = asyncio.Runner()
        self._open_admin = open_admin
        self._models = self._runner.run(_models(client))
        if open_admin is not None:
            found = self._runner.run(self._with_admin(lambda admin: admin.settings()))
            self.report.settings = {setting.path: setting.value for setting in found.settings}

    def flow(self, spec: FlowSpec) -> Flow:
        """With its requests. Raises `BadInput` or `PredictionError`."""
        options = self._options
        model = self._model(spec.model)
        inputs = arrays_for(model, self._sources) if self._sources else drawn(model, options.seed)
        made = requests(
            inputs,
            spec.rows,
            model=spec.model,
            version=spec.version,
            outputs=options.outputs,
            bypass_batching=spec.bypass_batching,
        )
        return Flow(
            name=spec.name,
            payloads=made,
            arrivals=spec.arrivals,
            in_flight=spec.in_flight,
            mode=spec.mode,
            priority=parse_priority(spec.priority),
            timeout_s=spec.timeout_s,
            connections=spec.connections,
            rows=spec.rows,
        )

    def run(self, title: str, flows: Sequence[Flow], seconds: float) -> RunFigures:
        """See `Bench`."""
        return self.run_at(self.server, title, flows, seconds)

    def run_at(
        self,
        server: Server,
        title: str,
        flows: Sequence[Flow],
        seconds: float,
        at_elapsed: Callable[[float], None] = lambda _elapsed_s: None,
    ) -> RunFigures:
        """The same against any server; `at_elapsed` hears of the seconds that have passed.

        Raises:
            LoadFailed: the generator broke or could not keep up.
            Interrupted: by Ctrl-C.
        """
        options = self._options
        load = Load(server, flows, seconds, options.warm_up_s, seed=options.seed)
        with _progress(title, load, shown=not options.as_json) as show:

            def tell(elapsed_s: float, results: int, failures: int) -> None:
                show(elapsed_s, results, failures)
                at_elapsed(elapsed_s)

            result = generator.run(load, options.processes, on_progress=tell, max_lag_ms=options.max_lag_ms)
        run = figures(title, result, load.interval_s)
        if result.interrupted:
            self.report.runs.append(run)
            raise Interrupted
        return run

    def change_settings(self, updates: Mapping[str, str | None]) -> None:
        """None takes one back. Raises `PredictionError`."""
        self._runner.run(self._with_admin(lambda admin: admin.update_settings(updates)))

    def finish(self, scenario: Callable[[], object]) -> int:
        """Runs it and tells of it; the exit code.

        Raises:
            LoadFailed: there is nothing to tell.
        """
        code = DONE
        try:
            scenario()
        except Interrupted:
            self.report.notes.append("interrupted: what is shown was measured until then")
            code = INTERRUPTED
        except LoadFailed:
            if not self.report.runs:
                raise
            self._tell()  # what was measured before
            raise
        self._tell()
        return code or (DONE if self.report.holds else MISSED)

    def _tell(self) -> None:
        report, folder = self.report, self._options.folder
        if self._options.as_json:
            print_json(report.to_json())
        else:
            print_report(report)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{report.scenario}-{time.strftime('%Y%m%d-%H%M%S')}"
        write_json(report, stem.with_suffix(".json"))
        write_page(report, stem.with_suffix(".html"))
        print(f"report: {stem.with_suffix('.html')}, {stem.with_suffix('.json')}", file=sys.stderr)

    def _model(self, name: str) -> ModelInfo:
        for model in self._models:
            if model.name == name or (not name and model.is_default):
                return model
        names = ", ".join(model.name for model in self._models)
        raise BadInput(f"the server has no model {name!r}; it has {names}")

    async def _with_admin(self, ask: Callable[[AdminClient], Any]) -> Any:
        assert self._open_admin is not None
        async with self._open_admin() as admin:
            return await ask(admin)


async def _models(client: Client) -> list[ModelInfo]:
    async with client:
        return await client.models()


@contextmanager
def _progress(title: str, load: Load, *, shown: bool) -> Iterator[Callable[[float, int, int], None]]:
    """A bar on standard error while the load runs, where somebody sees it."""
    console = Console(stderr=True)
    whole_s = load.warm_up_s + load.duration_s
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task(title, total=whole_s, counts="")

        def show(elapsed_s: float, results: int, failures: int) -> None:
            failed = f", {failures:,} failed" if failures else ""
            bar.update(
                task, completed=min(whole_s, max(0.0, elapsed_s)), counts=f"{results:,} answers{failed}"
            )

        yield show
