"""Who waits how long: aging against strict levels and first come, first served.

    python -m bench.priority [--rounds 4] [--plot PATH]

Three servers of one model take turns; they differ in the slack of the classes only. All slacks zero is first
come, first served; slacks beyond the length of a run are strict levels. A load process offers calls
in an open loop. Two questions:

    bulk    How much longer do real-time calls take while less urgent classes offer 3 x capacity?
    flood   How long does the least urgent class wait under real-time load that does not end?

Exits with 1 when a bound does not hold.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.heavy_server import serving
from bench.open_loop import Flow, FlowResult, capacity, offer
from bench.report import PLOTS, Check, ms, print_checks, print_table, quantile
from bench.server_process import ServerProcess
from scheduler.priority import DEFAULT_LIMITS, PriorityClass, aging_horizon_ns

REAL_TIME, BACKGROUND = "real_time_trading", "background_tasks"
# With its default deadlines, seconds.
BULK = {"batch_processing": 1.0, "historical_analysis": 10.0, BACKGROUND: 60.0}
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
CAPACITY_S = 2.0

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


@dataclass
class Waits:
    """All rounds of one class in one situation on one server."""

    offered: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    latency_ms: list[float] = field(default_factory=list)
    queue_wait_ms: list[float] = field(default_factory=list)
    compute_ms: list[float] = field(default_factory=list)
    outside_ms: list[float] = field(default_factory=list)  # latency, less what the server knows of

    def add(self, result: FlowResult) -> None:
        """Pools the samples of another round."""
        self.offered += result.offered
        for end, count in result.ends.items():
            self.ends[end] = self.ends.get(end, 0) + count
        self.latency_ms += result.latency_ms
        self.queue_wait_ms += result.queue_wait_ms
        self.compute_ms += result.compute_ms
        self.outside_ms += np.subtract(result.latency_ms, result.server_ms).tolist()

    @property
    def longest_ms(self) -> float:
        """The longest queue wait; NaN without a result."""
        return max(self.queue_wait_ms, default=float("nan"))

    def row(self) -> list[str]:
        """Of a table: latency and queue wait, and how many calls ended how."""
        others = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()) if end != "RESULT")
        return [
            f"{len(self.latency_ms)} of {self.offered}",
            ms(quantile(self.latency_ms, 0.5)),
            ms(quantile(self.latency_ms, 0.99)),
            ms(quantile(self.queue_wait_ms, 0.5)),
            ms(quantile(self.queue_wait_ms, 0.99)),
            ms(self.longest_ms),
            ms(quantile(self.outside_ms, 0.99)),
            others,
        ]


# By server, situation and class.
Table = dict[tuple[str, str, str], Waits]
_HEADER = [
    *("server", "load", "class", "results", "latency p50, ms", "p99"),
    *("queue wait p50, ms", "p99", "longest", "outside the server p99, ms", "other ends"),
]


def measure(servers: Mapping[str, ServerProcess], rounds: int) -> Table:
    """Every server in turn, round after round: the machine is not the same from minute to minute."""
    table: Table = {}

    def run(variant: str, situation: str, flows: list[Flow], seconds: float, seed: int) -> None:
        target = servers[variant].target
        for result in offer(target, flows, seconds, seed=seed, linger_s=LINGER_S):
            table.setdefault((variant, situation, result.flow.priority), Waits()).add(result)

    rows_per_s = {name: capacity(server.target, CAPACITY_S) for name, server in servers.items()}
    print("capacity, rows/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rows_per_s.items()) + "\n")
    for number in range(rounds):
        for variant in servers:
            few = Flow(REAL_TIME, REAL_TIME_TIMEOUT_S, REAL_TIME_PER_S)
            run(variant, "alone", [few], SECONDS["bulk"], number)
            rate = BULK_LOAD * rows_per_s[variant] / len(BULK)
            bulk = [Flow(name, timeout_s, rate, clients=4) for name, timeout_s in BULK.items()]
            run(variant, "bulk", [few, *bulk], SECONDS["bulk"], number)
    for variant in (AGING, STRICT):
        # The capacity of this moment: at 90 % of it, a few per cent decide how long queues are.
        rate = FLOOD_LOAD * capacity(servers[variant].target, CAPACITY_S) - BACKGROUND_PER_S
        background = Flow(BACKGROUND, BULK[BACKGROUND], BACKGROUND_PER_S)
        floods = (
            Flow(REAL_TIME, REAL_TIME_TIMEOUT_S, rate, clients=2),
            Flow(REAL_TIME, REAL_TIME_TIMEOUT_S, in_flight=FLOOD_IN_FLIGHT),
        )
        for situation, flood in zip(FLOODS, floods, strict=True):
            run(variant, situation, [flood, background], SECONDS["flood"], 1)
    return table


def checks(table: Table) -> list[Check]:
    """The bounds, and that strict levels break theirs."""
    alone, bulk = table[AGING, "alone", REAL_TIME], table[AGING, "bulk", REAL_TIME]
    found = [
        Check(
            f"real-time p{part * 100:.0f}, bulk at {BULK_LOAD:g} x capacity minus alone",
            quantile(bulk.latency_ms, part) - quantile(alone.latency_ms, part),
            QUANTUM_MS + 1,
            "ms",
        )
        for part in (0.5, 0.99)
    ]
    found.append(
        Check("real-time calls without result, bulk", bulk.offered - len(bulk.latency_ms), 0, "calls")
    )
    for situation in FLOODS:
        low = table[AGING, situation, BACKGROUND]
        found += [
            Check(
                f"longest wait of background, {situation}", low.longest_ms, bound_ms(table, situation), "ms"
            ),
            Check(
                f"background calls without result, {situation}", low.offered - len(low.latency_ms), 0, "calls"
            ),
        ]
    starved = table[STRICT, FLOODS[1], BACKGROUND]
    # What was offered first waits as long as the flood lasts, or never gets an answer at all.
    wait_ms = starved.longest_ms if starved.latency_ms else SECONDS["flood"] * 1e3
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
    batch_ms = max(urgent.compute_ms + low.compute_ms, default=0.0)
    return horizon_ms + urgent.longest_ms + 2 * batch_ms


def plot(table: Table, path: Path) -> None:
    """Real-time latencies, waits per class, and the waits of the least urgent class under a flood."""
    figure, ((latency, classes), (first, second)) = plt.subplots(2, 2, figsize=(13, 9))
    for variant in VARIANTS:
        _cdf(latency, table[variant, "bulk", REAL_TIME].latency_ms, f"{variant}, bulk")
    _cdf(latency, table[AGING, "alone", REAL_TIME].latency_ms, "alone", color="black", linestyle="--")
    latency.set(title=f"Real time while bulk offers {BULK_LOAD:g} x capacity", xlabel="latency, ms")
    names = [REAL_TIME, *BULK]
    for offset, variant in enumerate(VARIANTS):
        waits = [quantile(table[variant, "bulk", name].queue_wait_ms, 0.99) for name in names]
        classes.bar([index + 0.27 * (offset - 1) for index in range(len(names))], waits, 0.27, label=variant)
    classes.set(title="Queue wait by class, the same load", ylabel="p99 of those served, ms", yscale="log")
    classes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    for axes, situation in ((first, FLOODS[0]), (second, FLOODS[1])):
        for variant in (AGING, STRICT):
            _cdf(axes, table[variant, situation, BACKGROUND].queue_wait_ms, variant)
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
    axes: Axes, samples: list[float], label: str, color: str | None = None, linestyle: str = "-"
) -> None:
    if samples:
        axes.ecdf([max(sample, 0.01) for sample in samples], label=label, color=color, linestyle=linestyle)


def main() -> int:
    """Prints the tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of the bulk load; a flood is run once")
    parser.add_argument("--plot", type=Path, default=PLOTS / "priority.png")
    arguments = parser.parse_args()
    with serving(VARIANTS) as servers:
        table = measure(servers, arguments.rounds)
    print_table(_HEADER, [[*place, *waits.row()] for place, waits in table.items()])
    plot(table, arguments.plot)
    print(f"plot: {arguments.plot}\n")
    return print_checks(checks(table))


if __name__ == "__main__":
    sys.exit(main())
