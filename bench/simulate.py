"""The scheduler against a virtual clock: waits, misses and goodput for any load and number of replicas.

    python -m bench.simulate SCENARIO [--replicas 1 2 4 8 16 50] [--seed N] [--seconds S]
                             [--plot FILE] [--json FILE]
    python -m bench.simulate check [--rounds N]

SCENARIO is a name or a TOML file. `check` compares one scenario with a real server of this machine.
The same seed gives the same figures, to the last digit.
"""

import argparse
import json
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench import simulate_check
from bench.plots import plot
from bench.scenario import load_scenario, names
from bench.simulation import simulate
from bench.simulation_report import summarise, table
from server.problems import SettingsError

REPLICAS = (1, 2, 4, 8, 16, 50)
WIDTH = 170
EXIT_MISUSE = 2


def main() -> int:
    """Exit code 1 when a check does not hold, 2 for a scenario that is none."""
    arguments = _parser().parse_args()
    console = Console(width=WIDTH)
    if arguments.scenario == "check":
        return simulate_check.main(console, arguments.rounds, arguments.json)
    try:
        scenario = load_scenario(arguments.scenario)
        if arguments.balancer:
            scenario = scenario.model_copy(update={"balancer": arguments.balancer})
        seconds = arguments.seconds or scenario.seconds
        summaries = [
            summarise(simulate(scenario, replicas, seconds, arguments.seed), scenario.classes)
            for replicas in arguments.replicas
        ]
    except (OSError, tomllib.TOMLDecodeError, ValueError, SettingsError) as error:
        print(f"{arguments.scenario}: {error}; by name there are {', '.join(names())}", file=sys.stderr)
        return EXIT_MISUSE
    title = f"{arguments.scenario}: {scenario.description} ({seconds:g} s, seed {arguments.seed})"
    console.print(table(title, summaries))
    if arguments.json:
        document = {
            "scenario": scenario.model_dump(mode="json"),
            "seconds": seconds,
            "seed": arguments.seed,
            "runs": [asdict(summary) for summary in summaries],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.plot:
        plot(arguments.plot, title, summaries)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenario", help=f"{', '.join(names())}, a file, or check")
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=list(REPLICAS), choices=range(1, 51), metavar="N"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="default: the scenario's")
    parser.add_argument(
        "--balancer", choices=["round_robin", "least_outstanding"], help="default: the scenario's"
    )
    parser.add_argument("--plot", type=Path, help="a .png or .svg")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=1, help="of check")
    return parser


if __name__ == "__main__":
    sys.exit(main())
