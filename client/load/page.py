"""A report as one HTML file, with nothing to fetch from anywhere."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path

from client.load.chart import Axis, Series, chart
from client.load.figures import FlowFigures, RunFigures
from client.load.report import Report, Table, all_tables, pace_note

# Lines of one chart, at most: more of them nobody tells apart.
SHOWN = 5


def write_page(report: Report, path: Path) -> None:
    """Raises `OSError`."""
    path.write_text(page(report))


def page(report: Report) -> str:
    """The whole document."""
    verdict = ""
    if report.verdicts:
        broken = sum(not each.holds for each in report.verdicts)
        word = f"{broken} of {len(report.verdicts)} promises missed" if broken else "every promise kept"
        verdict = f'<p class="{"bad" if broken else "good"}">{word}</p>'
    title = f"tickring bench {report.scenario}"
    style = (resources.files("client.load") / "page.css").read_text()
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report.target)}, {escape(report.context.started_at)}</p>{verdict}",
        *(_table(table) for table in all_tables(report)),
        f'<h2>Charts</h2><div class="charts">{"".join(_charts(report.runs))}</div>',
        "<h2>Notes</h2>",
        *(f"<p>{escape(note)}</p>" for note in [*(pace_note(run) for run in report.runs), *report.notes]),
        "<h2>Where and with what</h2>",
        _facts([(name, _text(value)) for name, value in asdict(report.context).items()]),
        "<h2>Asked for</h2>",
        _facts([(name, _text(value)) for name, value in report.arguments.items()]),
    ]
    if report.settings:
        parts += ["<h2>Settings of the server</h2>", _facts(list(report.settings.items()))]
    return "".join([*parts, "</body></html>\n"])


def _charts(runs: Sequence[RunFigures]) -> Iterable[str]:
    flows = [
        (f"{run.title}: {flow.name}" if len(runs) > 1 else flow.name, flow)
        for run in runs
        for flow in run.flows
    ][:SHOWN]
    yield chart(
        "Latency by percentile",
        [Series(name, _curve(flow)) for name, flow in flows],
        Axis("percentile", ticks=[(_nines(p), f"{p:g}") for p in (0, 50, 90, 99, 99.9, 99.99)]),
        Axis("ms", logarithmic=True),
    )
    if len(runs) > 1:
        return
    yield chart(
        "Answers over time",
        [Series(name, [(each.at_s, each.per_s) for each in flow.moments]) for name, flow in flows]
        + [
            Series(f"{name}, failed", [(each.at_s, each.failed_per_s) for each in flow.moments])
            for name, flow in flows
            if flow.error_ratio
        ],
        Axis("seconds"),
        Axis("per second"),
    )
    for name, flow in flows:
        yield chart(
            f"Latency over time: {name}",
            [
                Series("p50", [(each.at_s, each.p50_ms) for each in flow.moments]),
                Series("p99", [(each.at_s, each.p99_ms) for each in flow.moments]),
                Series("max", [(each.at_s, each.max_ms) for each in flow.moments]),
            ],
            Axis("seconds"),
            Axis("ms", logarithmic=True),
        )
    yield chart(
        "Queue wait over time, p99",
        [Series(name, [(each.at_s, each.wait_p99_ms) for each in flow.moments]) for name, flow in flows],
        Axis("seconds"),
        Axis("ms"),
    )


def _curve(flow: FlowFigures) -> list[tuple[float, float | None]]:
    # The last one that as many calls were measured for as it takes to tell it from the one before.
    last = 100 * (1 - 1 / max(2, flow.results))
    return [
        (_nines(min(percent, last)), value)
        for percent, value in flow.curve
        if percent <= last or percent == 100
    ]


def _nines(percent: float) -> float:
    """Equal distances for each further nine."""
    return -math.log10(max(1e-9, 1 - percent / 100))


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)
