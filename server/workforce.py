"""Loads the models of an engine onto its device and builds the instances that compute there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from scheduler.arena import Arena
from scheduler.clock import Clock, ThreadTimeClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cpu_forms import AUTO, ONNX, Wanted, choose, ranges
from scheduler.executor.dynamic_cpu import cpu_instance
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceModel, DeviceSettings, Runner, load_model
from scheduler.executor.samples import FILE as SAMPLES
from scheduler.executor.samples import read_samples
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan
from scheduler.signature import ModelSignature
from server.lineup import Lineup, Seat
from server.repository import read_verified
from server.settings import Settings
from server.sizing import EngineSizes, batch_plan

# The first two runs of a shape compile; the median of the rest seeds the latency model.
WARM_UP_ROUNDS = 8

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where instances work: the engine as it is before it has any.

    Attributes:
        lineup: what it serves.
        stopwatch: what warm-up measures with.
        max_batch: the largest of any model.
    """

    settings: Settings
    sizes: EngineSizes
    lineup: Lineup
    arena: Arena
    dispatcher: Dispatcher
    clock: Clock
    stopwatch: Clock
    max_batch: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """What is watched of a GPU while it computes.

    Attributes:
        uuid: as the driver knows it.
        cached_bytes: of its memory, what this process has allocated and can use again.
        limits: of the batches, where memory ran out.
        release: gives back what is cached on the device and not used.
    """

    uuid: str
    cached_bytes: Callable[[], int]
    limits: BatchLimits
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Workforce:
    """The instances of an engine: for any work, for urgent work only, and without a core of their own.

    `gpu` is None on a CPU.
    """

    instances: Sequence[Instance]
    reserved: Sequence[Instance]
    spares: Sequence[Instance]
    gpu: Gpu | None = None

    @property
    def everyone(self) -> Sequence[Instance]:
        """All of them."""
        return [*self.instances, *self.reserved, *self.spares]


def hire(place: Workplace) -> Workforce:
    """Loads the models and makes the instances. Nothing is warm yet.

    Raises:
        ModelUnusable: a model cannot be served on this device, or there is no such device.
        RepositoryError: a file is not what the manifest says.
        DeviceLost: the device failed.
    """
    gpu: Gpu | None = None
    make: Callable[[bool], Instance]
    sizes = place.sizes
    if sizes.device == "cpu":
        make = _cpu_instances(place)
    else:
        make, gpu = _cuda_instances(place)
    return Workforce(
        [make(False) for _ in range(sizes.instances)],
        [make(True) for _ in range(sizes.reserved)],
        [make(False) for _ in range(sizes.spares)],
        gpu,
    )


def warm_up(
    workforce: Workforce, lineup: Lineup, plans: Sequence[BatchPlan], latency: LearnedLatency
) -> list[BatchPlan]:
    """Runs every bucket of every model on every instance, and seeds the latency model with what it took.

    Args:
        plans: by place.

    Returns:
        The plans, with those buckets only that fit every instance.

    Raises:
        ModelUnusable: a model does not do what its manifest says, or no batch of it fits the device.
        DeviceLost: the device failed.
    """
    fitting = list(plans)
    for seat in lineup.seats:
        place, plan = seat.place, plans[seat.place]
        measured = [instance.warm_up(place, plan.buckets, WARM_UP_ROUNDS) for instance in workforce.everyone]
        # The last of an instance for any work: those before it have met each shape for the first time.
        of_any_work = measured[len(workforce.instances) - 1]
        buckets = tuple(bucket for bucket in plan.buckets if all(bucket in each for each in measured))
        latency.seed(place, {bucket: of_any_work[bucket] for bucket in buckets})
        fitting[place] = replace(plan, buckets=buckets)
        log.info(
            "model is warm",
            model=seat.manifest.name,
            version=seat.version.version,
            instances=len(workforce.instances),
            ms_by_bucket={bucket: round(of_any_work[bucket] / 1e6, 3) for bucket in buckets},
        )
    if workforce.gpu is not None:
        workforce.gpu.release()  # what was tried and not chosen
    return fitting


def _cpu_instances(place: Workplace) -> Callable[[bool], Instance]:
    runners: dict[int, Runner] = {
        seat.place: _load(partial(_in_the_fastest_form, place, seat), place, seat)
        for seat in place.lineup.seats
    }
    return lambda urgent: cpu_instance(
        place.arena,
        place.dispatcher,
        runners,
        place.max_batch,
        place.clock,
        _log_failure,
        place.stopwatch,
    )


def _cuda_instances(place: Workplace) -> tuple[Callable[[bool], Instance], Gpu]:
    # Here, not above: only an engine with a GPU should pay for what they load.
    from scheduler.executor.cuda import CudaDevice, map_slab
    from scheduler.executor.dynamic_cuda import cuda_instance
    from scheduler.executor.torch_cuda import TorchCuda

    executor = place.settings.executor
    calls = TorchCuda(place.sizes.device, memory_fraction=executor.memory_fraction, spin=executor.cuda_spin)
    models: dict[int, DeviceModel] = {
        seat.place: _load(load_model, place, seat) for seat in place.lineup.seats
    }
    limits = BatchLimits(place.dispatcher.limit_batches)
    slab = map_slab(calls, place.arena, place.max_batch, log)
    device = CudaDevice(calls, slab, executor.cuda_graphs, limits, log)

    def make(urgent: bool) -> Instance:
        return cuda_instance(
            place.arena,
            place.dispatcher,
            models,
            place.clock,
            _log_failure,
            device,
            max_batch=place.max_batch,
            urgent=urgent,
        )

    return make, Gpu(calls.uuid, calls.cached_bytes, limits, calls.release_cache)


def _in_the_fastest_form(
    place: Workplace,
    seat: Seat,
    model_format: str,
    file: bytes,
    signature: ModelSignature,
    device: DeviceSettings,
) -> Runner:
    plan = batch_plan(place.settings, seat.manifest)
    backend = place.settings.executor.cpu_backend
    # What a thread computes alone is measured by its own time: others may want the same core.
    clock = ThreadTimeClock() if place.sizes.threads == 1 else place.clock
    samples = read_samples(seat.version.path.with_name(SAMPLES), signature)
    wanted = Wanted(backend, plan.buckets, plan.budget_ns, clock, samples)
    chosen = choose(model_format, file, signature, device, wanted)
    if chosen.refused or chosen.seconds:
        tell = log.warning if backend == ONNX and ONNX in chosen.refused else log.info
        tell(
            "form of a model is chosen",
            model=signature.name,
            version=signature.version,
            forms=ranges(chosen.by_bucket),
            ms_by_bucket=chosen.ms,
            refused=chosen.refused,
            seconds=chosen.seconds,
        )
    return chosen.runner


def _load(load: Callable[..., Any], place: Workplace, seat: Seat) -> Any:
    manifest, version = seat.manifest, seat.version
    precision = manifest.resolve_precision(place.settings.executor.precision)
    if precision == AUTO and place.sizes.device != "cpu":
        precision = "fp32"  # nothing is measured there
    device = DeviceSettings(device=place.sizes.device, threads=place.sizes.threads, precision=precision)
    model = load(manifest.format, read_verified(version), manifest.signature(version.version), device)
    log.info(
        "model is loaded",
        model=manifest.name,
        version=version.version,
        format=manifest.format,
        precision=device.precision,
        variant=model.variant,
    )
    return model


def _log_failure(batch: Batch, error: Exception, extent: FailureExtent) -> None:
    # The last line: TorchScript puts its own trace above what the model raised.
    last_line = (str(error).strip().splitlines() or [""])[-1]
    log.error(
        "batch failed",
        batch=batch.number,
        model=batch.model,
        items=len(batch.slots),
        guilty=extent.guilty,
        undecided=extent.undecided,
        runs=extent.runs,
        error=f"{type(error).__name__}: {last_line}",
    )
