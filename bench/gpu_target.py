"""Instances on a GPU for the rigs of a benchmark, and what they told while they warmed up."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bench.gpu_models import ModelFile
from bench.gpu_path import Hands, Hire
from scheduler.arena import Arena
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cuda import CudaDevice, CudaInstance, MappedSlab, map_slab
from scheduler.executor.torch_cuda import TorchCuda, TorchStream

MEMORY_FRACTION = 0.9


@dataclass(frozen=True)
class Wanted:
    """How instances are to be.

    Attributes:
        anyone, reserved: how many for any work, and for urgent work only, on streams of high priority.
        graphs: whether CUDA graphs may be used.
        spin: wait for the device in a loop.
        bulk_sms: the instances for any work are confined to so many multiprocessors; 0: to none.
    """

    models: Sequence[ModelFile]
    precision: str
    max_batch: int
    anyone: int = 1
    reserved: int = 0
    graphs: bool = True
    spin: bool = False
    bulk_sms: int = 0


class Notebook:
    """What instances tell."""

    def __init__(self) -> None:
        self.programs: dict[int, str] = {}
        self.warnings: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        """See `Notes`. Of several instances the last one's programs stay."""
        if event == "bucket is warm":
            self.programs[facts["bucket"]] = facts["program"]

    def warning(self, event: str, **facts: Any) -> None:
        """See `Notes`."""
        self.warnings.append({"event": event, **facts})


class Target(Protocol):
    """A device to measure."""

    def hire(self, wanted: Wanted, notes: Notebook, limits: list[int | None]) -> Hire:
        """Instances as wanted; every limit of a batch is added to `limits`."""
        ...

    def let_go(self) -> None:
        """Gives back what crews have left on the device."""
        ...


@dataclass
class GpuTarget:
    """One GPU. To be kept for the life of the process, with its slabs.

    Attributes:
        slabs: by arena. Memory that was registered with the driver must not go away, or what is mapped at
            its address next would be taken for it.
    """

    device: str
    slabs: dict[int, tuple[Arena, MappedSlab | None, int]] = field(default_factory=dict)

    def hire(self, wanted: Wanted, notes: Notebook, limits: list[int | None]) -> Hire:
        """See `Target`."""

        def build(
            arena: Arena,
            dispatcher: Dispatcher,
            on_failure: Callable[[Batch, Exception, FailureExtent], None],
        ) -> Hands:
            calls = self._calls(wanted)
            models = {at: model.load(self.device, wanted.precision) for at, model in enumerate(wanted.models)}

            def limit(model: int, largest: int | None) -> None:
                limits.append(largest)
                dispatcher.limit_batches(model, largest)

            slab = self._slab(calls, arena, wanted.max_batch, notes)
            device = CudaDevice(calls, slab, wanted.graphs, BatchLimits(limit), notes)

            def instance(urgent: bool) -> CudaInstance:
                return CudaInstance(
                    arena,
                    dispatcher,
                    models,
                    MonotonicClock(),
                    on_failure,
                    device,
                    max_batch=wanted.max_batch,
                    urgent=urgent,
                )

            return Hands(
                [instance(False) for _ in range(wanted.anyone)],
                [instance(True) for _ in range(wanted.reserved)],
            )

        return build

    def let_go(self) -> None:
        """See `Target`."""
        gc.collect()  # a crew has references in circles
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def _calls(self, wanted: Wanted) -> TorchCuda:
        if wanted.bulk_sms:
            return GreenCuda(self.device, wanted.bulk_sms, spin=wanted.spin)
        return TorchCuda(self.device, memory_fraction=MEMORY_FRACTION, spin=wanted.spin)

    def _slab(self, calls: TorchCuda, arena: Arena, max_batch: int, notes: Notebook) -> MappedSlab | None:
        _, slab, rows = self.slabs.get(id(arena), (arena, None, 0))
        if rows == 0:
            slab = map_slab(calls, arena, max_batch, notes)
            self.slabs[id(arena)] = (arena, slab, max_batch)
        else:
            assert max_batch <= rows, "an arena is registered once, for its largest batch"
        return slab


class NotAvailable(Exception):
    """This torch or this driver lacks what an experiment needs."""


class GreenCuda(TorchCuda):
    """CUDA whose ordinary streams run on part of the multiprocessors; urgent ones have all of them."""

    def __init__(self, device: str, sms: int, *, spin: bool) -> None:
        """Raises NotAvailable."""
        super().__init__(device, memory_fraction=MEMORY_FRACTION, spin=spin)
        self._index = torch.device(device).index or 0
        self._sms = sms
        # One per stream, each of the same multiprocessors: a context gives out one stream in some versions.
        self._contexts: list[Any] = []

    def stream(self, *, urgent: bool) -> TorchStream:
        """See `CudaCalls`."""
        stream = super().stream(urgent=urgent)
        if not urgent:
            stream.stream = self._green_stream()
        return stream

    def _green_stream(self) -> Any:
        try:
            from torch.cuda.green_contexts import GreenContext

            context: Any = GreenContext.create(num_sms=self._sms, device_id=self._index)
            stream = context.Stream()
        except (ImportError, AttributeError, RuntimeError, TypeError) as error:
            raise NotAvailable(f"green contexts: {error}") from error
        self._contexts.append(context)
        return stream


def multiprocessors(device: str) -> int:
    """How many the device has."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
