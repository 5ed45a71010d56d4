"""The answer of a scenario: tables for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from client.cli_output import console
from client.load.context import Context
from client.load.figures import FlowFigures, RunFigures
from client.load.objectives import Verdict


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are texts, ready to be read."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(slots=True)
class Report:
    """`arguments`: what the command was told. `settings`: the server's, where they were asked for."""

    scenario: str
    target: str
    context: Context
    arguments: Mapping[str, Any]
    runs: list[RunFigures] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return all(verdict.holds for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        told = asdict(self)
        told["verdicts"] = [
            {**asdict(verdict), "holds": verdict.holds, "text": verdict.text} for verdict in self.verdicts
        ]
        return {**told, "holds": self.holds}


def write_json(report: Report, path: Path) -> None:
    """One object. Raises `OSError`."""
    path.write_text(json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")


def run_tables(runs: Sequence[RunFigures]) -> list[Table]:
    """What every run had: latency from the intended send time, and where the server says it went."""
    rows, parts = [], []
    for run in runs:
        for flow in run.flows:
            name = f"{run.title}: {flow.name}" if len(runs) > 1 else flow.name
            latency = flow.latency_ms
            rows.append(
                [
                    name,
                    f"{flow.offered}, {flow.mode}",
                    f"{flow.per_s * flow.rows:,.0f}" if flow.rows > 1 else f"{flow.per_s:,.1f}",
                    f"{flow.error_ratio:.2%}",
                    *(ms(latency[part]) for part in ("p50", "p90", "p99", "p999", "max")),
                ]
            )
            parts.append(
                [
                    name,
                    *(ms(flow.wait_ms[part]) for part in ("p50", "p99", "max")),
                    *(ms(flow.compute_ms[part]) for part in ("p50", "p99")),
                    *(ms(flow.server_ms[part]) for part in ("p50", "p99")),
                ]
            )
    tables = [
        Table(
            "Latency from the instant at which a call should have been sent, ms",
            ["flow", "offered", "rows/s", "errors", "p50", "p90", "p99", "p99.9", "max"],
            rows,
        ),
        Table(
            "Of it at the server, ms",
            ["flow", "wait p50", "p99", "max", "compute p50", "p99", "server p50", "p99"],
            parts,
        ),
    ]
    ends = [
        [run.title, flow.name, end, f"{count:,}"]
        for run in runs
        for flow in run.flows
        for end, count in flow.ends.items()
        if len(flow.ends) > 1 or end != "RESULT"
    ]
    if ends:
        tables.append(Table("How calls ended", ["run", "flow", "end", "calls"], ends))
    return tables


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Promises, kept or not."""
    rows = []
    for each in verdicts:
        sign = "≤" if each.at_most else "≥"
        figure = "-" if each.figure is None else f"{each.figure:.4g} {each.unit}".strip()
        rows.append([each.name, figure, f"{sign} {each.bound:g} {each.unit}".strip(), each.text])
    return Table("Promises", ["promise", "measured", "bound", "verdict"], rows)


def all_tables(report: Report) -> list[Table]:
    """In the order of a reader's questions."""
    tables = [*report.tables, *run_tables(report.runs)]
    if report.verdicts:
        tables.append(verdict_table(report.verdicts))
    return tables


def print_report(report: Report) -> None:
    """For people."""
    out = console()
    for table in all_tables(report):
        shown = RichTable(*table.header, title=table.title, title_justify="left", title_style="bold")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            shown.add_row(*row)
        out.print(shown)
    for note in [*(pace_note(run) for run in report.runs), *report.notes]:
        out.print(note, style="dim", highlight=False)


def pace_note(run: RunFigures) -> str:
    """How the generator did."""
    pace = run.pace
    used = "generator: " + ", ".join(f"{each:.2f}" for each in pace.cpu) + " cores"
    if pace.lag_p99_ms is not None:
        lags = f"p50 {ms(pace.lag_p50_ms)}, p99 {ms(pace.lag_p99_ms)}, at most {ms(pace.lag_max_ms)} ms"
        used += f", sends late by {lags}"
    return f"{run.title}: {used}" + ("; interrupted" if run.interrupted else "")


def ms(value: float | None) -> str:
    """With as many digits as matter; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def main_flow(run: RunFigures) -> FlowFigures:
    """The one that promises are about: the first."""
    return run.flows[0]
