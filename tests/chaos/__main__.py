"""Rounds of random faults under load.

    python -m tests.chaos [--rounds 1000] [--seed 1] [--engines 1]

Prints what happened by fault and status, and what memory did; exits with 1 when anything was wrong.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import Report, run, tenths
from tests.chaos.world import World


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", type=int, default=1, help="on the CPU, each in a process of its own")
    arguments = parser.parse_args()

    def progress(number: int, fault: str, seconds: float) -> None:
        print(f"\rround {number}: {fault}, {seconds:.1f} s\033[K", end="", file=sys.stderr, flush=True)

    started_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tickring-chaos-") as folder,
        World(Path(folder), arguments.seed, arguments.engines) as world,
    ):
        report = run(world, arguments.rounds, arguments.seed, progress)
    print(file=sys.stderr)
    show(report, time.monotonic() - started_s)
    return 1 if report.problems else 0


def show(report: Report, took_s: float) -> None:
    """Prints the tables."""
    print("| fault | rounds | median, s | slowest call, s | calls by status |\n|---|---|---|---|---|")
    for name, tally in sorted(report.tallies.items()):
        print(
            f"| {name} | {tally.rounds} | {statistics.median(tally.seconds):.2f} "
            f"| {tally.account.slowest_s:.2f} | {_counts(tally.account.statuses)} |"
        )
    print(
        f"| all, seed {report.seed} | {report.rounds} | {took_s:.0f} in all | | {_counts(report.statuses)} |"
    )
    print("\n| process | MB, second tenth of the rounds | last tenth |\n|---|---|---|")
    for name, sizes in sorted(report.memory.items()):
        if len(sizes) >= 10:
            before, after = tenths(sizes)
            print(f"| {name} | {before / 1e6:.1f} | {after / 1e6:.1f} |")
    print(f"\nproblems: {len(report.problems)}")
    for problem in report.problems:
        print(problem)


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(statuses.items()))


if __name__ == "__main__":
    sys.exit(main())
