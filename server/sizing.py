"""What "auto" means on this machine, and how a model's batches follow from the settings."""

import os
from dataclasses import dataclass

from scheduler.policy import BatchPlan
from scheduler.priority import CLASS_COUNT, urgent_classes
from server.lineup import Lineup
from server.repository import Manifest
from server.settings import Settings

# An engine spins only where cores are left for those that it waits for. With two cores one engine did well to
# spin on every load that was tried: it yields its core whenever somebody else can use it, and a call
# finds it awake and warm (docs/decisions/0006, 0020).
ENGINE_SPIN_AUTO_US = 10_000
# A front end looks while it waits for answers, which shares a core with gRPC's own thread and the callers:
# only for short ones (docs/decisions/0017).
FRONTEND_SPIN_AUTO_US = 2_000
# Of one GPU, for any work: copies and launches of one batch overlap with another's computation. One more
# where none is reserved.
GPU_STREAMS = 2
# A Python front end saturates about one core; this many of them keep one CPU engine busy.
CORES_PER_FRONTEND = 4


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """How an engine uses its device.

    Attributes:
        instances: for any work; on a CPU with a core of their own each.
        reserved: the same, for urgent work only.
        spares: on the cores of the front ends, for when more is queued than the others take next.
    """

    device: str
    instances: int
    reserved: int
    spares: int
    threads: int
    spin_ns: int


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def frontends(settings: Settings) -> int:
    """Front end processes to start."""
    wanted = settings.server.frontends
    return max(1, cores() // CORES_PER_FRONTEND) if wanted == "auto" else wanted


def engine_sizes(settings: Settings, device: str) -> EngineSizes:
    """Instances, threads and spinning of one engine on "cpu" or "cuda:N".

    Engines on the CPU have equal parts of the cores that front ends leave over, at least one each.
    """
    executor = settings.executor
    asked = settings.scheduler.reserved_instances
    sharing = max(1, executor.device.split(",").count("cpu"))
    # Cores that no front end needs, at least one.
    compute_cores = max(1, max(1, cores() - frontends(settings)) // sharing)
    if executor.instances != "auto":
        wanted = executor.instances
    elif device == "cpu":
        wanted = compute_cores
    else:
        wanted = GPU_STREAMS + max(1, asked)
    # One at least takes any work, or bulk would never run.
    reserved = min(asked, wanted - 1)
    threads, spares = 1, 0
    if device == "cpu":
        threads = max(1, compute_cores // wanted)
        # A spare computes on a front end's core, so there is one for each of those at most.
        spares = int(executor.instances == "auto" and cores() > 1 and sharing <= frontends(settings))
    if executor.cpu_threads != "auto":
        threads = executor.cpu_threads
    spin = settings.scheduler.spin_us
    spin_us = (ENGINE_SPIN_AUTO_US if cores() > sharing else 0) if spin == "auto" else spin
    return EngineSizes(device, wanted - reserved, reserved, spares, threads, spin_us * 1000)


def frontend_spin_ns(settings: Settings) -> int:
    """How long front ends look for answers before they sleep; see `spinning`."""
    spin = settings.scheduler.spin_us
    if spin == "auto":
        # A core for each of those that would spin; two were enough on every load that was tried.
        sharing = len(settings.executor.device.split(","))
        spin = FRONTEND_SPIN_AUTO_US if cores() >= frontends(settings) + sharing else 0
    return spin * 1000


def batch_plans(settings: Settings, lineup: Lineup, places: int) -> list[BatchPlan]:
    """By place; nobody ever asks for those of places without a model."""
    nothing = BatchPlan(buckets=(1,), max_wait_ns=(0,) * CLASS_COUNT, budget_ns=None)
    plans = [nothing] * places
    for seat in lineup.seats:
        plans[seat.place] = batch_plan(settings, seat.manifest)
    return plans


def batch_plan(settings: Settings, manifest: Manifest) -> BatchPlan:
    """How the batches of one model are formed: the settings, and the manifest's overrides."""
    scheduler = settings.scheduler
    overrides = manifest.scheduler
    budget_ms = overrides.latency_budget_ms or scheduler.latency_budget_ms
    quantum_ms = overrides.bulk_quantum_ms or scheduler.bulk_quantum_ms
    return BatchPlan(
        buckets=overrides.resolve_buckets(scheduler.resolved_buckets),
        max_wait_ns=tuple(limits.max_wait_ns for limits in settings.class_limits),
        budget_ns=int(budget_ms * 1e6) if scheduler.adaptive else None,
        quantum_ns=int(quantum_ms * 1e6),
        urgent=urgent_classes(settings.class_limits, bulk_quantum_ns(settings)),
    )


def bulk_quantum_ns(settings: Settings) -> int:
    """The quantum that divides urgent classes from bulk; a model's own may cut its batches further."""
    return int(settings.scheduler.bulk_quantum_ms * 1e6)
