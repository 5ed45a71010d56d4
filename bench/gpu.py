"""Measures models and service on a GPU; prints tables and writes JSON.

    python -m bench.gpu [--part floor,parity,device,isolation,soak,service] [--quick] [--out FILE]
                        [--models NAME,…] [--device cuda:N] [--minutes-budget N] [--loadgen PATH]

Every part bounds its own time and leaves out, and says so, what does not fit; the file is written anew after
every row. Ends with 0, with 1 where a bar does not hold, with 2 where there is nothing to measure on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import gpu_device, gpu_floor, gpu_isolation, gpu_parity, gpu_service, gpu_soak
from bench.gpu_models import NAMES
from bench.gpu_results import WHAT, Budget, Results, facts
from bench.gpu_target import GpuTarget, multiprocessors

# Of the time, by part; those that are run share all of it.
SHARES = {"floor": 1.0, "device": 8.0, "parity": 1.0, "isolation": 2.0, "soak": 2.0, "service": 4.0}
MINUTES = sum(SHARES.values())
# With --quick: enough to see that everything runs, and the orders of magnitude.
QUICK_MINUTES = 4.0
QUICK_MODELS = NAMES[:2]
QUICK_FRONTENDS = (1, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = parsed(arguments)
    if not torch.cuda.is_available():
        print(f"bench.gpu: no CUDA device here for torch {torch.__version__}", file=sys.stderr)
        return 2
    if options.device not in [f"cuda:{index}" for index in range(torch.cuda.device_count())]:
        print(f"bench.gpu: no {options.device} here, torch sees {torch.cuda.device_count()}", file=sys.stderr)
        return 2
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(options.out, facts(options.device))
    print(f"{WHAT}\n", flush=True)
    target = GpuTarget(options.device)
    failed = 0
    for part, minutes in minutes_by_part(options.part, options.minutes_budget, options.quick).items():
        print(f"== {part}, at most {minutes:.1f} minutes\n", flush=True)
        failed |= run_part(part, results, target, Budget(minutes), options)
    return failed


def run_part(
    part: str, results: Results, target: GpuTarget, budget: Budget, options: argparse.Namespace
) -> int:
    """1 where a bar of it does not hold. A part that breaks says so, and the others still run."""
    device, quick = options.device, options.quick
    try:
        match part:
            case "floor":
                return gpu_floor.measure(results, device, budget, quick=quick)
            case "parity":
                return gpu_parity.compare(results, device, options.models, budget)
            case "device":
                return gpu_device.measure(results, target, options.models, budget, quick=quick)
            case "isolation":
                return gpu_isolation.measure(results, target, multiprocessors(device), budget)
            case "soak":
                return gpu_soak.measure(results, target, device, budget)
            case "service":
                frontends = QUICK_FRONTENDS if quick else gpu_service.FRONTENDS
                return gpu_service.measure(
                    results, device, budget, loadgen=options.loadgen, frontends=frontends
                )
            case _:
                raise AssertionError(part)
    except Exception as error:  # of any kind: what the other parts find is worth having
        results.note(part, f"broke off: {type(error).__name__}: {error}")
        return 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; ends with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", type=_names, default=("all",))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=_names)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes-budget", type=float)
    parser.add_argument("--loadgen", type=Path)
    options = parser.parse_args(arguments)
    options.models = options.models or (QUICK_MODELS if options.quick else NAMES)
    if unknown := [name for name in options.models if name not in NAMES]:
        parser.error(f"--models {','.join(unknown)}: must be of {', '.join(NAMES)}")
    options.part = tuple(SHARES) if options.part == ("all",) else options.part
    if unknown := [name for name in options.part if name not in SHARES]:
        parser.error(f"--part {','.join(unknown)}: must be all, or of {', '.join(SHARES)}")
    if options.minutes_budget is not None and options.minutes_budget <= 0:
        parser.error(f"--minutes-budget {options.minutes_budget:g}: must be more than 0")
    if options.loadgen is not None and not options.loadgen.is_file():
        parser.error(f"--loadgen {options.loadgen}: no such file")
    return options


def minutes_by_part(parts: Sequence[str], minutes: float | None, quick: bool) -> dict[str, float]:
    """What each of these parts may take; None: as long as it usually does."""
    usual = sum(SHARES[part] for part in parts)
    if minutes is None:
        minutes = usual * (QUICK_MINUTES / MINUTES if quick else 1.0)
    return {part: minutes * SHARES[part] / usual for part in SHARES if part in parts}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
