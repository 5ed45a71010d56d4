"""The soak part: batches without a pause, poison rows among them, and a device whose memory runs out.

Memory is looked at after the first tenth of the time and at the end: what grows in between grows for ever.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import psutil
import torch

from bench.gpu_device import rig_for
from bench.gpu_feeder import Fed, Load
from bench.gpu_models import BUNDLED, POISON, model_file, touchy
from bench.gpu_path import Crew, Rig, flat, frozen_garbage, sizes_up_to
from bench.gpu_results import Budget, Results
from bench.gpu_target import MEMORY_FRACTION, Notebook, Target, Wanted
from bench.report import Check
from scheduler import _ring
from scheduler.arena import Dimensions
from scheduler.policy import BatchPlan

PART = "soak"
LARGEST = 256
FEEDERS = 4
POISON_EVERY = 500
FIRST_LOOK = 0.1
# Beyond these something grows that should not: a block of the allocator, pages of the interpreter.
_MIB = 1 << 20
GROWTH_BYTES = {"allocated": 0, "reserved": 64 * _MIB, "device_used": 64 * _MIB, "rss": 64 * _MIB}
OOM_MODEL = "lstm_b"
OOM_SIZES = (8, 64, 512)
OOM_SECONDS = 3.0
SETUP_S = 40.0


# Bytes by name, as in `GROWTH_BYTES`.
Memory = Mapping[str, int]


def look(device: str) -> Memory:
    """What tensors have of the device, torch's allocator, and anybody; and this process of the host."""
    free, total = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "device_used": total - free,
        "rss": psutil.Process(os.getpid()).memory_info().rss,
    }


def measure(results: Results, target: Target, device: str, budget: Budget) -> int:
    """Prints its tables and checks; 1 where a check does not hold."""
    failed = 0
    if budget.allows(2 * SETUP_S):
        seconds = budget.left_s() - 2 * SETUP_S
        failed |= steady(results, target, lambda: look(device), seconds)
    else:
        results.note(PART, "not measured for want of time")
    target.let_go()
    if budget.allows(SETUP_S / 2):
        failed |= _out_of_memory(results, target, device)
    else:
        results.note(PART, "out of memory: not measured for want of time")
    results.show(PART)
    return failed


def steady(results: Results, target: Target, look_now: Callable[[], Memory], seconds: float) -> int:
    """Batches of two models, with rows of NaN for one and of what makes it raise for the other."""
    file = model_file(BUNDLED)
    window = file.signature.inputs[0].shape
    models = [file, touchy((window[0], window[1]))]
    dimensions = Dimensions(
        FEEDERS,
        len(models),
        4 * LARGEST,
        file.signature.input_row_bytes,
        file.signature.output_row_bytes,
    )
    wanted = Wanted(models, "fp32", LARGEST, anyone=2)
    looks: list[Memory] = []
    with frozen_garbage(), Rig(dimensions) as rig, Crew(rig, target.hire(wanted, Notebook(), []), 2) as crew:
        sizes = sizes_up_to(LARGEST)
        crew.warm_up(sizes, sizes)
        crew.use(*[BatchPlan(sizes, (1_000_000,) * _ring.CLASSES, None)] * 2)
        crew.start(2)
        before = crew.batches()
        for part in (FIRST_LOOK, 1 - FIRST_LOOK):
            fed, _ = crew.feed(*_loads(part * seconds))
            looks.append(look_now())
        batches = crew.batches() - before
    checks = [
        Check(f"growth of {name}", (looks[1][name] - looks[0][name]) / _MIB, allowed / _MIB, "MiB")
        for name, allowed in GROWTH_BYTES.items()
    ]
    results.add(
        PART,
        {"what": "steady", "seconds": seconds, "batches": batches, "bisected": len(crew.failures)},
    )
    results.note(PART, f"memory after {FIRST_LOOK:.0%} of the time and at its end: {looks[0]}, {looks[1]}")
    return results.check(PART, *checks, *poison_checks(fed))


def _loads(seconds: float) -> list[Load]:
    """Two feeders of small and large requests for each model."""
    steady = Load(seconds, outstanding=8, poison_every=POISON_EVERY, note_latency=False)
    nans = [replace(steady, rows=rows) for rows in (1, 7)]
    return [*nans, *[replace(steady, rows=rows, model=1, poison=POISON) for rows in (1, 5)]]


def poison_checks(fed: list[Fed]) -> list[Check]:
    """Every poisoned request failed, every other one has its results."""
    clean, poisoned = flat([each.outcomes for each in fed]), flat([each.poisoned for each in fed])
    failed = {name: count for name, count in clean.items() if name != "RESULT"}
    survived = poisoned.get("RESULT", 0)
    return [
        Check(f"requests beside poison that failed {failed or ''}", sum(failed.values()), 0, "requests"),
        Check(f"poisoned requests that did not {poisoned}", survived, 0, "requests"),
        Check("poisoned requests at all", sum(poisoned.values()), 1, "requests", at_most=False),
    ]


def _out_of_memory(results: Results, target: Target, device: str) -> int:
    """Something else takes the memory that a full batch needs: batches shrink, and no request fails."""
    limits: list[int | None] = []
    wanted = Wanted([model_file(OOM_MODEL)], "fp32", OOM_SIZES[-1], graphs=False)
    with (
        ExitStack() as held,
        frozen_garbage(),
        rig_for(model_file(OOM_MODEL), 2, OOM_SIZES[-1], streams=1) as rig,
        Crew(rig, target.hire(wanted, Notebook(), limits)) as crew,
    ):
        crew.warm_up(OOM_SIZES)
        crew.use(BatchPlan(OOM_SIZES, (0,) * _ring.CLASSES, None))
        crew.start(1)
        load = Load(OOM_SECONDS, rows=OOM_SIZES[-1], outstanding=1)
        needed = _bytes_of_a_batch(crew, load, device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        usable = min(free, int(MEMORY_FRACTION * total) - torch.cuda.memory_reserved(device))
        # Room for half of what the largest batch takes beside what is always there.
        hog: Any = torch.empty(max(1, usable - needed // 2), dtype=torch.uint8, device=device)
        held.callback(torch.cuda.empty_cache)
        fed, runs = crew.feed(load)
        del hog
    smallest = min((run.rows for run in runs), default=0)
    results.add(
        PART,
        {
            "what": "out of memory",
            "limits": " ".join(map(str, limits)),
            "largest batch after": runs[-1].rows if runs else 0,
            "smallest": smallest,
            "batches": len(runs),
        },
    )
    failed = {name: count for each in fed for name, count in each.outcomes.items() if name != "RESULT"}
    return results.check(
        PART,
        Check("requests that failed for want of memory", sum(failed.values()), 0, "requests"),
        Check("batches that were limited", len(limits), 1, "times", at_most=False),
    )


def _bytes_of_a_batch(crew: Crew, load: Load, device: str) -> int:
    """The peak of allocated bytes while batches run, less what is allocated when none does."""
    crew.feed(replace(load, seconds=0.5))
    torch.cuda.reset_peak_memory_stats(device)
    crew.feed(replace(load, seconds=0.5))
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
