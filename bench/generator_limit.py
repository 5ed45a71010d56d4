"""How much one process of the load generator can offer: the rate at which its own sends are late.

    python -m bench.generator_limit [--rounds 3] [--seconds 2]

The generator has one core, a server that answers at once has another. Rates go up, each a quarter over the
one before, until one send in a hundred is more than a millisecond late, or answers no longer keep up.
"""

import argparse
import os
import statistics
import sys
from dataclasses import dataclass

from bench.echo import echo
from bench.load import windows
from bench.report import print_table
from client.load import generator
from client.load.arrivals import Arrivals
from client.load.flows import STREAM, UNARY, Flow, Load, Server

MAX_LAG_MS = 1.0
# Of the calls offered, as many must have been answered meanwhile: what is behind that is the server.
LEAST_ANSWERED = 0.98
FIRST_PER_S = 400.0
STEP = 1.25
WARM_UP_S = 0.5
LINGER_S = 0.2
HEADER = [
    "calls",
    "highest rate on time, 1/s",
    "sends late by p99 there, ms",
    "core",
    "next rate, 1/s",
    "late by",
]


@dataclass(frozen=True)
class Step:
    """One rate; `core`: the part of a core that it took."""

    rate_per_s: float
    lag_p99_ms: float
    core: float


def on_time(result: generator.LoadResult) -> bool:
    """Whether the generator offered what it was to offer."""
    (record,) = result.records
    lag_ms = result.pace.lag_p99_ms
    return lag_ms is not None and lag_ms <= MAX_LAG_MS and record.results >= LEAST_ANSWERED * record.offered


def steps(target: str, mode: str, seconds: float, seed: int) -> tuple[Step, Step]:
    """The last rate that was offered on time, and the first that was not."""
    payloads, last, rate_per_s = windows(), Step(0.0, 0.0, 0.0), FIRST_PER_S
    while True:
        flow = Flow("echo", payloads, Arrivals("poisson", rate_per_s), mode=mode)
        load = Load(Server(target), [flow], seconds, WARM_UP_S, LINGER_S, seed)
        result = generator.run(load, max_lag_ms=float("inf"), max_cpu=float("inf"))
        step = Step(rate_per_s, result.pace.lag_p99_ms or 0.0, result.pace.cpu[0])
        if not on_time(result):
            return last, step
        last, rate_per_s = step, rate_per_s * STEP


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("needs two cores: one for the generator, one for the server", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {cores[1]})
    rows = []
    with echo() as target:
        os.sched_setaffinity(0, {cores[0]})
        for mode in (UNARY, STREAM):
            found = [steps(target, mode, arguments.seconds, number) for number in range(arguments.rounds)]
            for number, (last, late) in enumerate(found, 1):
                rows.append(
                    [
                        f"{mode}, round {number}",
                        f"{last.rate_per_s:,.0f}",
                        f"{last.lag_p99_ms:.2f}",
                        f"{last.core:.2f}",
                        f"{late.rate_per_s:,.0f}",
                        f"{late.lag_p99_ms:.2f}",
                    ]
                )
            middle = statistics.median(last.rate_per_s for last, _ in found)
            print(f"{mode}: {middle:,.0f} calls/s", flush=True)
    print()
    print_table(HEADER, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
