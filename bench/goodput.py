"""What is still worth something when too much is asked for: goodput against offered load.

    python -m bench.goodput [--rounds 2] [--plot PATH]

Goodput is results within their deadline per second, here as a part of capacity: what the same server does
in a closed loop, and beyond capacity what it does so while it refuses as many calls as there are too many,
before and after. A machine whose speed changes within seconds blurs that, so there is a second yardstick:
the part of the engine's time that went into results in time, by what a row took meanwhile.

Two servers of one model take turns, one of them without early refusal: it lets in whatever its queues hold.
The generator offers, in an open loop, 0.5 to 5 times capacity: real-time calls alone, whose deadline is
short, and all five classes in equal parts with their default deadlines.

Exits with 1 when goodput beyond capacity falls below 95 % of it, or when a class is served worse than a less
urgent one.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.engine_time import EngineTime
from bench.heavy_load import capacity, flow, offer
from bench.heavy_server import serving
from bench.report import PLOTS, Check, print_checks, print_table
from bench.server_process import ServerProcess
from client.load.flows import Flow
from client.load.generator import LoadResult
from scheduler.priority import DEFAULT_LIMITS, PriorityClass

LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
GOODPUT_BAR = 0.95
# By what part of its calls a class may be served worse than a less urgent one: noise.
ORDER_BAR = 0.02
SECONDS = 4.0
# Queues have found their length by then.
SETTLED_S = 2.0
# The machine carries generator and front end as well: five times what the server can do must be little for
# them, or what is measured is how cores are shared.
ROW_MS = 4.0
ADMISSION, NO_ADMISSION = "early refusal", "without"
VARIANTS = {ADMISSION: {}, NO_ADMISSION: {"TICKRING_SCHEDULER__EARLY_REFUSAL": "false"}}
MIXES: Mapping[str, tuple[PriorityClass, ...]] = {
    "real time": (PriorityClass.REAL_TIME_TRADING,),
    "five classes": tuple(PriorityClass),
}


@dataclass
class Point:
    """One mix at one load on one server, all rounds."""

    goodput: list[float] = field(default_factory=list)  # parts of capacity
    engine_parts: list[float] = field(default_factory=list)  # of the engine's time
    offered: Counter[str] = field(default_factory=Counter)  # by class
    served: Counter[str] = field(default_factory=Counter)  # in time, by class
    ends: Counter[str] = field(default_factory=Counter)

    def add(self, result: LoadResult, rows_per_s: float, row_s: float) -> None:
        """Another round, with its capacity and the time that the engine took for a row."""
        goodput_per_s = sum(map(result.goodput_per_s, result.records))
        self.goodput.append(goodput_per_s / rows_per_s)
        self.engine_parts.append(goodput_per_s * row_s)
        for each, record in zip(result.flows, result.records, strict=True):
            self.offered[each.name] += record.offered
            self.served[each.name] += record.in_time
            self.ends += record.ends

    @property
    def mean_goodput(self) -> float:
        """Of the rounds."""
        return statistics.mean(self.goodput)

    def served_part(self, name: str) -> float:
        """Calls of this class answered in time, as a part of those offered meanwhile."""
        return self.served[name] / self.offered[name]


# By server, mix and load.
Table = dict[tuple[str, str, float], Point]


def measure(servers: Mapping[str, ServerProcess], rounds: int) -> Table:
    """Both servers in turn at every load."""
    table: Table = {}
    for number in range(rounds):
        for mix, members in MIXES.items():
            for load in LOADS:
                for name, server in servers.items():
                    # Measured anew each time: the machine is not the same from minute to minute.
                    alone = capacity(server.target, seed=number)
                    # What the same server does with as many calls to refuse, all of them nonsense.
                    refused_per_s = max(0.0, load - 1) * alone
                    before = alone
                    if refused_per_s:
                        before = capacity(server.target, refused_per_s=refused_per_s, seed=number)
                    result, row_s = _offer(server, _flows(members, load * alone), number)
                    after = capacity(server.target, refused_per_s=refused_per_s, seed=number)
                    point = table.setdefault((name, mix, load), Point())
                    point.add(result, (before + after) / 2, row_s)
                    print(
                        f"round {number + 1}, {mix}, {load:g} x {alone:.0f} rows/s, {name}: "
                        f"{100 * point.goodput[-1]:.1f} % of {before:.0f} and {after:.0f}, "
                        f"{100 * point.engine_parts[-1]:.1f} % of the engine's time at {1e3 * row_s:.2f} ms",
                        flush=True,
                    )
    print()
    return table


def _offer(server: ServerProcess, flows: Sequence[Flow], seed: int) -> tuple[LoadResult, float]:
    """What came of it, and the time that the engine took for a row while it counted."""
    readings: list[EngineTime] = []
    result = offer(
        server.target,
        flows,
        SECONDS,
        seed=seed,
        warm_up_s=SETTLED_S,
        on_settled=lambda: readings.append(EngineTime.of(server)),
    )
    return result, EngineTime.of(server).row_s(readings[-1])


def _flows(members: tuple[PriorityClass, ...], rate_per_s: float) -> list[Flow]:
    return [
        flow(member, DEFAULT_LIMITS[member.index].default_timeout_ns / 1e9, rate_per_s / len(members))
        for member in members
    ]


def rows(table: Table) -> list[list[str]]:
    """Of the table that is printed."""
    found = []
    for (name, mix, load), point in table.items():
        parts = [
            f"{100 * point.served_part(member.label):.0f}" if member.label in point.offered else ""
            for member in PriorityClass
        ]
        ends = ", ".join(f"{count} {end}" for end, count in sorted(point.ends.items()))
        of_engine = f"{100 * statistics.mean(point.engine_parts):.1f}"
        found.append([name, mix, f"{load:g}", f"{100 * point.mean_goodput:.1f}", of_engine, *parts, ends])
    return found


def checks(table: Table) -> list[Check]:
    """Goodput beyond capacity, and the order in which classes are shed."""
    found = []
    for (name, mix, load), point in table.items():
        if name != ADMISSION or load <= 1:
            continue
        found.append(
            Check(
                f"goodput at {load:g} x capacity, {mix}",
                100 * point.mean_goodput,
                100 * GOODPUT_BAR,
                "% of capacity",
                at_most=False,
            )
        )
        if len(point.offered) > 1:
            found.append(
                Check(
                    f"class served worse than a less urgent one, at {load:g} x capacity, by",
                    100 * inversion(point),
                    100 * ORDER_BAR,
                    "% of its calls",
                )
            )
    return found


def inversion(point: Point) -> float:
    """By how much a class is served worse than a less urgent one, where that is worst; at least 0."""
    parts = [point.served_part(member.label) for member in PriorityClass]
    return max(max(parts[index:]) - part for index, part in enumerate(parts))


def plot(table: Table, path: Path) -> None:
    """Goodput of both servers for each mix, and what part of each class was served."""
    figure, axes = plt.subplots(1, 3, figsize=(17, 5.5))
    for panel, mix in zip(axes[:2], MIXES, strict=True):
        for name in VARIANTS:
            goodput = [100 * table[name, mix, load].mean_goodput for load in LOADS]
            panel.plot(LOADS, goodput, marker="o", label=name)
        panel.plot(LOADS, [100 * min(1.0, load) for load in LOADS], "k:", label="ideal")
        panel.set(title=f"Goodput, {mix}", ylabel="% of capacity", ylim=(0, 110))
    for member in PriorityClass:
        parts = [100 * table[ADMISSION, "five classes", load].served_part(member.label) for load in LOADS]
        axes[2].plot(LOADS, parts, marker="o", label=member.label)
    axes[2].set(title=f"Answered in time, five classes, {ADMISSION}", ylabel="% of offered", ylim=(-3, 105))
    for panel in axes:
        _dress(panel)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _dress(panel: Axes) -> None:
    panel.set(xlabel="offered load, x capacity")
    panel.grid(visible=True, alpha=0.3)
    panel.legend()


def main() -> int:
    """Prints the tables; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--plot", type=Path, default=PLOTS / "goodput.png")
    arguments = parser.parse_args()
    with serving(VARIANTS, ROW_MS) as servers:
        table = measure(servers, arguments.rounds)
    names = [f"{member.label}, % served" for member in PriorityClass]
    header = ["server", "mix", "load", "goodput, % of capacity", "% of the engine's time", *names, "ends"]
    print_table(header, rows(table))
    plot(table, arguments.plot)
    print(f"plot: {arguments.plot}\n")
    return print_checks(checks(table))


if __name__ == "__main__":
    sys.exit(main())
