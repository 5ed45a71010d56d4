"""Mutated messages to every RPC, and raw HTTP/2 that nobody should send, against a real server.

    python -m tests.fuzz [--messages 100000] [--connections 3000] [--seed 1] [--seconds-limit S]

Starts a server of the bundled model on free ports of this machine, and a good caller in another process who
has to be served all the time. Prints how messages and connections ended, and what memory did; exits with 1
when anything was wrong. A problem names its call: `--first CALL --messages 1` with the same seed repeats it.
"""

import argparse
import sys
from collections import Counter

from tests.fuzz.campaign import Order, Report, run
from tests.fuzz.world import World

PROGRESS_EVERY = 2000


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="mutated messages")
    parser.add_argument(
        "--connections", type=int, default=None, help="raw ones; as a rule 3 for 100 messages"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument(
        "--seconds-limit", type=float, default=float("inf"), help="send nothing more after this long"
    )
    arguments = parser.parse_args()
    connections = arguments.messages * 3 // 100 if arguments.connections is None else arguments.connections
    order = Order(arguments.messages, connections, arguments.seed, arguments.first, arguments.seconds_limit)
    shown = 0

    def progress(report: Report) -> None:
        nonlocal shown
        if report.account.messages >= shown + PROGRESS_EVERY:
            shown = report.account.messages
            rate = shown / report.seconds
            text = f"{shown} messages, {report.peers.connections} raw connections, {rate:.0f} messages/s"
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)

    with World() as world:
        report = run(world, order, progress)
    print(file=sys.stderr)
    show(report)
    return 1 if report.problems else 0


def show(report: Report) -> None:
    """Prints the tables."""
    account, peers = report.account, report.peers
    print(
        f"seed {report.seed}: {account.messages} messages in {account.calls} calls, {peers.connections} raw "
        f"connections with {peers.streams} streams, {report.seconds:.0f} s; the slowest call took "
        f"{account.slowest_s:.1f} s, the slowest raw connection {peers.slowest_s:.1f} s"
    )
    print("\n| RPC | messages by end |\n|---|---|")
    _print_ends(account.ends)
    print(f"| all | {_counts(report.codes)} |")
    print("\n| raw connection | ends |\n|---|---|")
    _print_ends(peers.ends)
    print("\n| process | MB after the warm-up | in the middle | at the end |\n|---|---|---|---|")
    for name, end in report.memory["end"].items():
        sizes = [report.memory.get(when, {}).get(name, 0) for when in ("warm", "middle")]
        print(f"| {name} | {' | '.join(f'{size / 1e6:.0f}' for size in (*sizes, end))} |")
    print(f"\nwitness: { ({name: value for name, value in report.witness.items() if name != 'problems'}) }")
    print(f"\nproblems: {len(report.problems)}")
    for problem in report.problems:
        print(problem)


def _print_ends(ends: Counter[tuple[str, str]]) -> None:
    rows: dict[str, Counter[str]] = {}
    for (name, end), count in ends.items():
        rows.setdefault(name, Counter())[end] += count
    for name, row in sorted(rows.items()):
        print(f"| {name} | {_counts(row)} |")


def _counts(row: Counter[str]) -> str:
    return ", ".join(f"{end} {count}" for end, count in sorted(row.items()))


if __name__ == "__main__":
    sys.exit(main())
