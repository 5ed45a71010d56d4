"""The isolation part: how long real-time windows take while bulk saturates the device, and what helps.

Green contexts are an experiment, and live here only: the streams of the instances that bulk runs on belong to
a context of part of the multiprocessors, the urgent stream to the device's own.
"""

from dataclasses import dataclass

from bench.gpu_device import rig_for
from bench.gpu_feeder import Load
from bench.gpu_models import BUNDLED, model_file
from bench.gpu_path import Crew, Rig, Run, frozen_garbage, sizes_up_to
from bench.gpu_results import Budget, Results
from bench.gpu_target import NotAvailable, Notebook, Target, Wanted
from bench.report import quantile
from scheduler import _ring
from scheduler.policy import BatchPlan
from scheduler.priority import DEFAULT_LIMITS, PriorityClass

PART = "isolation"
PRECISION = "fp16"
LARGEST = 512
BULK_FEEDERS = 3
REAL_TIME_PER_S = 500.0
QUANTUM_NS = 10_000_000
SECONDS = 5.0
SETUP_S = 30.0
GREEN_PARTS = (0.9, 0.75)


@dataclass(frozen=True)
class Situation:
    """Streams that take any work, those for urgent work, and the part of the device that bulk may use."""

    name: str
    anyone: int = 1
    reserved: int = 0
    green_part: float = 0.0
    bulk: bool = True


SITUATIONS = (
    Situation("alone", bulk=False),
    Situation("one stream"),
    Situation("three streams", anyone=3),
    Situation("two streams, one reserved", anyone=2, reserved=1),
    *(
        Situation(f"the same, bulk on {part:.0%} of the SMs", anyone=2, reserved=1, green_part=part)
        for part in GREEN_PARTS
    ),
)


def measure(results: Results, target: Target, sms: int, budget: Budget, seconds: float = SECONDS) -> int:
    """Prints its table; 0, for there is no bar."""
    with rig_for(model_file(BUNDLED), 1 + BULK_FEEDERS, LARGEST) as rig:
        for situation in SITUATIONS:
            if not budget.allows(SETUP_S):
                results.note(PART, f"not measured for want of time: {situation.name}")
                continue
            try:
                _situation(results, target, rig, situation, sms, seconds)
            except NotAvailable as error:
                results.note(PART, f"{situation.name}: not available: {error}")
            target.let_go()
    results.show(PART)
    return 0


def _situation(
    results: Results, target: Target, rig: Rig, situation: Situation, sms: int, seconds: float
) -> None:
    wanted = Wanted(
        [model_file(BUNDLED)],
        PRECISION,
        LARGEST,
        anyone=situation.anyone,
        reserved=situation.reserved,
        bulk_sms=int(situation.green_part * sms),
    )
    notes = Notebook()
    with frozen_garbage(), Crew(rig, target.hire(wanted, notes, [])) as crew:
        sizes = tuple(crew.warm_up(sizes_up_to(LARGEST)))
        crew.use(BatchPlan(sizes, (0,) * _ring.CLASSES, None, QUANTUM_NS))
        crew.start(situation.anyone, situation.reserved)
        real_time = Load(seconds, rate_per_s=REAL_TIME_PER_S)
        bulk = Load(
            seconds,
            rows=LARGEST,
            outstanding=2,
            class_index=PriorityClass.BACKGROUND_TASKS.index,
            slack_ns=DEFAULT_LIMITS[PriorityClass.BACKGROUND_TASKS.index].slack_ns,
        )
        fed, runs = crew.feed(real_time, *[bulk] * BULK_FEEDERS * situation.bulk)
    latency_us = fed[0].latency_us
    results.add(
        PART,
        {
            "situation": situation.name,
            "real-time p50_us": quantile(latency_us, 0.5),
            "real-time p99_us": quantile(latency_us, 0.99),
            "real-time max_us": max(latency_us, default=float("nan")),
            "real-time windows": len(latency_us),
            "skipped": fed[0].skipped,
            "bulk windows_per_s": _rows_per_s(runs),
            "programs": ", ".join(
                sorted({notes.programs[size] for size in (1, LARGEST) if size in notes.programs})
            ),
        },
    )


def _rows_per_s(runs: list[Run]) -> float:
    """All of it; the real-time part is what little there is of that."""
    took_s = (max(run.done_ns for run in runs) - min(run.dispatched_ns for run in runs)) / 1e9
    return sum(run.rows for run in runs) / took_s
