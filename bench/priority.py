"""Who waits how long: aging against strict levels and first come, first served.

    python -m bench.priority [--rounds 4] [--plot PATH]

Three servers of one model take turns; they differ in the slack of the classes only. All slacks zero is first
come, first served; slacks beyond the length of a run are strict levels. The generator offers calls in
an open loop. Two questions:

    bulk    How much longer do real-time calls take while less urgent classes offer 3 x capacity?
    flood   How long does the least urgent class wait under real-time load that does not end?

Exits with 1 when a bound does not hold.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.heavy_load import capacity, distribution, flow, offer
from bench.heavy_server import serving
from bench.report import PLOTS, Check, ms, print_checks, print_table
from bench.server_process import ServerProcess
from client.load.flows import Flow
from client.load.recorder import RESULT, Record
from scheduler.priority import DEFAULT_LIMITS, PriorityClass, aging_horizon_ns

REAL_TIME, BACKGROUND = PriorityClass.REAL_TIME_TRADING, PriorityClass.BACKGROUND_TASKS
# With its default deadlines, seconds.
BULK = {PriorityClass.BATCH_PROCESSING: 1.0, PriorityClass.HISTORICAL_ANALYSIS: 10.0, BACKGROUND: 60.0}
BULK_LOAD = 3.0
REAL_TIME_PER_S = 50.0
# Longer than any wait, so that none is cut off: it is waits that are compared.
REAL_TIME_TIMEOUT_S = 30.0
FLOODS = ("at 90 % of capacity", "256 in flight")
FLOOD_LOAD = 0.9
FLOOD_IN_FLIGHT = 256
BACKGROUND_PER_S = 5.0
SECONDS = {"bulk": 6.0, "flood": 9.0}
# What waits at the end of a flood is served within this.
LINGER_S = 5.0

AGING, STRICT, FIFO = "aging", "strict levels", "first come"
# A batch of the size that the latency budget allows takes longer than the quantum: it is the quantum that
# bounds what real-time work waits for.
QUANTUM_MS = 5.0
SIZES = {
    "TICKRING_SCHEDULER__LATENCY_BUDGET_MS": "20",
    "TICKRING_SCHEDULER__BULK_QUANTUM_MS": str(QUANTUM_MS),
}


def slacks(*slack_ms: float) -> dict[str, str]:
    """The settings that give the classes these slacks."""
    return SIZES | {
        f"TICKRING_SCHEDULER__CLASSES__{member.name}__SLACK_MS": str(slack)
        for member, slack in zip(PriorityClass, slack_ms, strict=True)
    }


VARIANTS = {
    AGING: SIZES,
    STRICT: slacks(0, 900_000, 1_800_000, 2_700_000, 3_600_000),
    FIFO: slacks(0, 0, 0, 0, 0),
}


# By server, situation and class; all rounds.
Table = dict[tuple[str, str, PriorityClass], Record]
_HEADER = [
    *("server", "load", "class", "results", "latency p50, ms", "p99"),
    *("queue wait p50, ms", "p99", "longest", "at the server p99, ms", "other ends"),
]


def measure(servers: Mapping[str, ServerProcess], rounds: int) -> Table:
    """Every server in turn, round after round: the machine is not the same from minute to minute."""
    table: Table = {}

    def run(variant: str, situation: str, flows: list[Flow], seconds: float, seed: int) -> None:
        result = offer(servers[variant].target, flows, seconds, seed=seed, linger_s=LINGER_S)
        for each, record in zip(result.flows, result.records, strict=True):
            place = variant, situation, PriorityClass(each.priority)
            if place in table:
                table[place].add(record)
            else:
                table[place] = record

    rows_per_s = {name: capacity(server.target) for name, server in servers.items()}
    print("capacity, rows/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rows_per_s.items()) + "\n")
    few = flow(REAL_TIME, REAL_TIME_TIMEOUT_S, REAL_TIME_PER_S)
    for number in range(rounds):
        for variant in servers:
            run(variant, "alone", [few], SECONDS["bulk"], number)
            rate = BULK_LOAD * rows_per_s[variant] / len(BULK)
            bulk = [flow(member, timeout_s, rate) for member, timeout_s in BULK.items()]
            run(variant, "bulk", [few, *bulk], SECONDS["bulk"], number)
    for variant in (AGING, STRICT):
        # The capacity of this moment: at 90 % of it, a few per cent decide how long queues are.
        rate = FLOOD_LOAD * capacity(servers[variant].target) - BACKGROUND_PER_S
        background = flow(BACKGROUND, BULK[BACKGROUND], BACKGROUND_PER_S)
        floods = (
            flow(REAL_TIME, REAL_TIME_TIMEOUT_S, rate),
            flow(REAL_TIME, REAL_TIME_TIMEOUT_S, in_flight=FLOOD_IN_FLIGHT),
        )
        for situation, flood in zip(FLOODS, floods, strict=True):
            run(variant, situation, [flood, background], SECONDS["flood"], 1)
    return table


def at_ms(record: Record, kind: str, part: float) -> float:
    """A quantile, as in `Record.ms`; NaN without a result."""
    found = record.ms(kind, part)
    return math.nan if found is None else found


def longest_ms(record: Record) -> float:
    """The longest queue wait; NaN without a result."""
    return at_ms(record, "wait", 1.0)


def row(record: Record) -> list[str]:
    """Of the table that is printed: latency and queue wait, and how many calls ended how."""
    others = ", ".join(f"{count} {end}" for end, count in sorted(record.ends.items()) if end != RESULT)
    return [
        f"{record.results} of {record.offered}",
        ms(at_ms(record, "latency", 0.5)),
        ms(at_ms(record, "latency", 0.99)),
        ms(at_ms(record, "wait", 0.5)),
        ms(at_ms(record, "wait", 0.99)),
        ms(longest_ms(record)),
        ms(at_ms(record, "server", 0.99)),
        others,
    ]


def checks(table: Table) -> list[Check]:
    """The bounds, and that strict levels break theirs."""
    alone, bulk = table[AGING, "alone", REAL_TIME], table[AGING, "bulk", REAL_TIME]
    found = [
        Check(
            f"real-time p{part * 100:.0f}, bulk at {BULK_LOAD:g} x capacity minus alone",
            at_ms(bulk, "latency", part) - at_ms(alone, "latency", part),
            QUANTUM_MS + 1,
            "ms",
        )
        for part in (0.5, 0.99)
    ]
    found.append(Check("real-time calls without result, bulk", bulk.offered - bulk.results, 0, "calls"))
    for situation in FLOODS:
        low = table[AGING, situation, BACKGROUND]
        found += [
            Check(
                f"longest wait of background, {situation}", longest_ms(low), bound_ms(table, situation), "ms"
            ),
            Check(f"background calls without result, {situation}", low.offered - low.results, 0, "calls"),
        ]
    starved = table[STRICT, FLOODS[1], BACKGROUND]
    # What was offered first waits as long as the flood lasts, or never gets an answer at all.
    wait_ms = longest_ms(starved) if starved.results else SECONDS["flood"] * 1e3
    found.append(
        Check(
            f"strict levels starve background, {FLOODS[1]}",
            wait_ms,
            0.8 * SECONDS["flood"] * 1e3,
            "ms",
            at_most=False,
        )
    )
    return found


def bound_ms(table: Table, situation: str) -> float:
    """The aging horizon, what real-time work waits itself, and two batches."""
    horizon_ms = aging_horizon_ns(DEFAULT_LIMITS, PriorityClass.BACKGROUND_TASKS) / 1e6
    urgent, low = (table[AGING, situation, name] for name in (REAL_TIME, BACKGROUND))
    batch_ms = max(at_ms(record, "compute", 1.0) for record in (urgent, low))
    return horizon_ms + longest_ms(urgent) + 2 * batch_ms


def plot(table: Table, path: Path) -> None:
    """Real-time latencies, waits per class, and the waits of the least urgent class under a flood."""
    figure, ((latency, classes), (first, second)) = plt.subplots(2, 2, figsize=(13, 9))
    for variant in VARIANTS:
        _cdf(latency, table[variant, "bulk", REAL_TIME], "latency", f"{variant}, bulk")
    _cdf(latency, table[AGING, "alone", REAL_TIME], "latency", "alone", color="black", linestyle="--")
    latency.set(title=f"Real time while bulk offers {BULK_LOAD:g} x capacity", xlabel="latency, ms")
    members = [REAL_TIME, *BULK]
    for offset, variant in enumerate(VARIANTS):
        waits = [at_ms(table[variant, "bulk", member], "wait", 0.99) for member in members]
        places = [index + 0.27 * (offset - 1) for index in range(len(members))]
        classes.bar(places, waits, 0.27, label=variant)
    classes.set(title="Queue wait by class, the same load", ylabel="p99 of those served, ms", yscale="log")
    classes.set_xticks(range(len(members)), [member.label.replace("_", "\n") for member in members])
    for axes, situation in ((first, FLOODS[0]), (second, FLOODS[1])):
        for variant in (AGING, STRICT):
            _cdf(axes, table[variant, situation, BACKGROUND], "wait", variant)
        axes.axvline(bound_ms(table, situation), color="black", linestyle=":", label="bound with aging")
        axes.set(title=f"Background tasks, real time {situation}", xlabel="queue wait, ms")
    classes.legend(loc="upper left", fontsize=8)
    classes.margins(y=0.35)
    for axes in (latency, first, second):
        axes.legend()
    for axes in (latency, first, second):
        axes.set(xscale="log", ylabel="part of calls")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _cdf(
    axes: Axes, record: Record, kind: str, label: str, color: str | None = None, linestyle: str = "-"
) -> None:
    if record.results:
        values_ms, counts = zip(*distribution(record.histograms[kind]), strict=True)
        shown_ms = [max(value_ms, 0.01) for value_ms in values_ms]
        axes.ecdf(shown_ms, counts, label=label, color=color, linestyle=linestyle)


def main() -> int:
    """Prints the tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of the bulk load; a flood is run once")
    parser.add_argument("--plot", type=Path, default=PLOTS / "priority.png")
    arguments = parser.parse_args()
    with serving(VARIANTS) as servers:
        table = measure(servers, arguments.rounds)
    rows = [
        [variant, situation, member.label, *row(record)]
        for (variant, situation, member), record in table.items()
    ]
    print_table(_HEADER, rows)
    plot(table, arguments.plot)
    print(f"plot: {arguments.plot}\n")
    return print_checks(checks(table))


if __name__ == "__main__":
    sys.exit(main())
