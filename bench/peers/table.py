"""What was measured as a section of docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.page import Section, line, spread
from bench.peers.measure import CLOSED, RATES, Row, Start

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "peers.json"
SECTION = Section("peers")

# Fewer answers, in all rounds, say nothing of the one in a thousand.
LEAST_FOR_P999 = 1000
# Fewer rounds have no spread worth the name.
LEAST_ROUNDS = 3


def render(told: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    rows = [Row(**row) for row in told["rows"]]
    starts = [Start(**start) for start in told["starts"]]
    context = told["context"]
    titles = {name: peer["title"] for name, peer in told["peers"].items()}
    lines = [
        f"{context['started_at'][:10]}, {context['cores']} cores of {context['cpu']}, "
        f"commit {context['commit']}; medians of {told['rounds']} rounds of {told['seconds']:g} s a load, "
        "in brackets the smallest and the largest. The bare model did "
        f"{spread([row.floor_per_s for row in rows], '.0f')} windows/s and took "
        f"{spread([row.bare_us for row in rows], '.0f')} us for one window: throughput is a multiple of the "
        "former, latency one of the latter."
        + (
            " Of so few rounds: a trial of the command, not a result."
            if told["rounds"] < LEAST_ROUNDS
            else ""
        ),
        "",
        "| closed loop | server | answers/s | p50 | p99 | p99.9 |",
        "|---|---|---|---|---|---|",
    ]
    for in_flight in CLOSED:
        for name, title in titles.items():
            these = [row for row in rows if (row.server, row.in_flight) == (name, in_flight)]
            cells = [_per_s(these), *_latency(these)] if _held(these) else ["calls failed"] + 3 * ["-"]
            lines.append(line(f"{in_flight} in flight", title, *cells))
    lines += ["", "| open loop | server | p50 | p99 | p99.9 |", "|---|---|---|---|---|"]
    for rate in RATES:
        for name, title in titles.items():
            these = [row for row in rows if (row.server, row.rate) == (name, rate)]
            cells = _latency(these) if _held(these) else ["saturated", "-", "-"]
            lines.append(line(f"{rate}/s", title, *cells))
    lines += ["", "| server | cold start, s | memory, MiB |", "|---|---|---|"]
    for name, title in titles.items():
        own = [start for start in starts if start.server == name]
        seconds = spread([start.cold_start_s for start in own], ".1f")
        lines.append(line(title, seconds, spread([start.memory_mib for start in own], ".0f")))
    lines += ["", "| server | versions | settings |", "|---|---|---|"]
    for peer in told["peers"].values():
        versions = ", ".join(f"{package} {version}" for package, version in peer["versions"].items())
        lines.append(line(peer["title"], versions, peer["settings"]))
    return "\n".join(lines) + "\n"


def _held(rows: Sequence[Row]) -> bool:
    return all(row.held for row in rows)


def _per_s(rows: Sequence[Row]) -> str:
    return spread([row.per_s / row.floor_per_s for row in rows], ".2f")


def _latency(rows: Sequence[Row]) -> list[str]:
    enough = sum(row.answers for row in rows) >= LEAST_FOR_P999
    return [
        spread([row.p50_us / row.bare_us for row in rows], ".1f"),
        spread([row.p99_us / row.bare_us for row in rows], ".1f"),
        spread([row.p999_us / row.bare_us for row in rows], ".1f") if enough else "too few",
    ]
