"""This service beside PyTriton, Ray Serve and MLServer: the same model, requests and generator, in turn.

    python -m bench.peers [--rounds 3] [--seconds 3] [--only NAME ...] [--docs-only]

Installs each peer once, below build/peers, from its own pins in bench/peers/requirements-NAME.txt; none of it
is a dependency of the project. Writes bench/results/peers.json and the tables of docs/benchmarks.md; with
--only it prints them and writes nothing. Every answer is checked before anything is measured.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.peers.bare import Bare
from bench.peers.catalog import PEERS, Peer
from bench.peers.environments import versions
from bench.peers.measure import one_round
from bench.peers.processes import adopt_orphans
from bench.peers.table import RESULTS, SECTION, render
from client.load.context import here


def measured(peers: Sequence[Peer], rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds, as they go into the results file."""
    described = {
        peer.name: {
            "title": peer.title,
            "versions": versions(peer.python(), peer.packages),
            "settings": peer.settings,
        }
        for peer in peers
    }
    context = here()
    adopt_orphans()
    rows, starts = [], []
    bare = Bare()
    try:
        right = bare.answers()
        for number in range(rounds):
            began_s = time.monotonic()
            more_rows, more_starts = one_round(peers, number, seconds, bare, right)
            rows += more_rows
            starts += more_starts
            print(f"round {number + 1} of {rounds}: {time.monotonic() - began_s:.0f} s", flush=True)
    finally:
        bare.close()
    return {
        "context": asdict(context),
        "rounds": rounds,
        "seconds": seconds,
        "peers": described,
        "rows": [asdict(row) for row in rows],
        "starts": [asdict(start) for start in starts],
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--docs-only", action="store_true", help="measure nothing, write the page again")
    given = parser.parse_args()
    if given.docs_only:
        told = json.loads(RESULTS.read_text())
    else:
        told = measured(
            [peer for peer in PEERS if peer.name in (given.only or names)], given.rounds, given.seconds
        )
    if given.only:
        print(render(told))
        return
    if not given.docs_only:
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    SECTION.put(render(told))
    print(render(told))


if __name__ == "__main__":
    main()
