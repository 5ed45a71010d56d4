"""Where the service stands: its throughput and latency beside the bare model and beside gRPC alone.

    python -m bench.standing [--rounds 5] [--seconds 3] [--docs-only]

Each round has a fresh server, and takes the floors again and again: the bare model between any two loads, and
gRPC without a service behind it once. Writes `bench/results/standing.json` and the tables of
docs/benchmarks.md. The generator is that of `tickring bench`, in Python and on the same cores.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import load
from bench.bare_model import BareModel, measure
from bench.echo import echo
from bench.page import Section, line, spread
from bench.server_process import ServerProcess
from client.load.context import here

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "standing.json"
SECTION = Section("standing")

LOADS = [
    ("unary", 1),
    ("unary", 8),
    ("unary", 32),
    ("unary", 64),
    ("stream", 1),
    ("stream", 32),
    ("stream", 128),
]
LONE = 1
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Row:
    """One load in one round. Times in microseconds; `bare_us` is the bare model's for one window."""

    mode: str
    in_flight: int
    windows_per_s: float
    floor_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    bare_us: float
    echo_us: float | None


def one_round(seconds: float) -> list[Row]:
    """Every load once, in a fresh server."""
    with echo() as target:
        echoes = {mode: load.run(target, mode, LONE, seconds).p50_us for mode in ("unary", "stream")}
    rows = []
    before = measure(0.7)
    with ServerProcess() as server:
        load.run(server.target, "unary", 8, WARM_UP_S)
        for mode, in_flight in LOADS:
            result = load.run(server.target, mode, in_flight, seconds)
            after = measure(0.7)
            rows.append(
                Row(
                    mode,
                    in_flight,
                    result.calls_per_s,
                    _mean(before.best_windows_per_s, after.best_windows_per_s),
                    result.p50_us,
                    result.p99_us,
                    result.p999_us,
                    _mean(_one_us(before), _one_us(after)),
                    echoes[mode] if in_flight == LONE else None,
                )
            )
            before = after
    return rows


def render(told: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    rows = [Row(**row) for row in told["rows"]]
    context = told["context"]
    lines = [
        f"{context['started_at'][:10]}, {context['cores']} cores of {context['cpu']}, "
        f"commit {context['commit']}; medians of {told['rounds']} rounds, in brackets the smallest and the "
        f"largest. The bare model did "
        f"{spread([row.floor_per_s for row in rows], '.0f')} windows/s and took "
        f"{spread([row.bare_us for row in rows], '.0f')} us for one window.",
        "",
        "| load | windows/s over the bare model | p50, ms | p99, ms | p99.9 / p50 |",
        "|---|---|---|---|---|",
    ]
    for mode, in_flight in LOADS:
        these = [row for row in rows if (row.mode, row.in_flight) == (mode, in_flight)]
        cells = [
            f"{mode}, {in_flight} in flight",
            spread([row.windows_per_s / row.floor_per_s for row in these], ".2f"),
            spread([row.p50_us / 1e3 for row in these], ".2f"),
            spread([row.p99_us / 1e3 for row in these], ".2f"),
            spread([row.p999_us / row.p50_us for row in these], ".1f"),
        ]
        lines.append(line(*cells))
    lines += [
        "",
        "| a lone call, us | p50 | minus the bare model | gRPC with nothing behind it | minus both |",
        "|---|---|---|---|---|",
    ]
    for mode in ("unary", "stream"):
        lone = [row for row in rows if row.mode == mode and row.echo_us is not None]
        cells = [
            mode,
            spread([row.p50_us for row in lone], ".0f"),
            spread([row.p50_us - row.bare_us for row in lone], ".0f"),
            spread([row.echo_us or 0.0 for row in lone], ".0f"),
            spread([row.p50_us - row.bare_us - (row.echo_us or 0.0) for row in lone], ".0f"),
        ]
        lines.append(line(*cells))
    return "\n".join(lines) + "\n"


def _one_us(bare: BareModel) -> float:
    return bare.p50_us[1]


def _mean(*values: float) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--docs-only", action="store_true", help="measure nothing, write the page again")
    arguments = parser.parse_args()
    if not arguments.docs_only:
        context = here()
        rows = []
        for number in range(arguments.rounds):
            rows += one_round(arguments.seconds)
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
        told = {"context": asdict(context), "rounds": arguments.rounds, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    text = render(json.loads(RESULTS.read_text()))
    SECTION.put(text)
    print(text)


if __name__ == "__main__":
    main()
