"""The memory of one model on one stream, and the two ways in which rows get into it.

    slab row (front end's) ── gather ──► host input ── copy engine ──► device input      StagedFeed
    slab row (front end's) ── kernel that reads the mapped slab ─────► device input      MappedFeed
    device output ── copy engine ──► host output ── scatter ──► slab row

All of it is allocated once, for the largest batch; a smaller one uses the first rows. Host buffers are
page-locked, so that the copy engine reads them while the host goes on. They are free to be written again
once the stream has been waited for.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from scheduler.executor.cuda_calls import Array, CudaCalls, Tensor
from scheduler.executor.instance import item_rows
from scheduler.signature import ModelSignature, TensorSpec

Slots = npt.NDArray[np.uint32]


class Buffers:
    """Inputs and outputs on both sides.

    Attributes:
        inputs: device tensors `[max_batch, *shape]`, one per input of the model.
    """

    def __init__(self, calls: CudaCalls, signature: ModelSignature, max_batch: int) -> None:
        def shapes(specs: Sequence[TensorSpec]) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
            return [((max_batch, *spec.shape), spec.data_type.dtype) for spec in specs]

        self._calls = calls
        self.inputs = [calls.device(*shape) for shape in shapes(signature.inputs)]
        self.host_inputs = [calls.host(*shape) for shape in shapes(signature.inputs)]
        self._host_outputs = [calls.host(*shape) for shape in shapes(signature.outputs)]
        self.indexes = calls.device((max_batch,), np.dtype(np.int64))
        self.host_indexes = calls.host((max_batch,), np.dtype(np.int64))

    def inputs_of(self, bucket: int) -> list[Tensor]:
        """What the model reads in a batch of this size."""
        return [tensor[:bucket] for tensor in self.inputs]

    def enqueue_fetch(self, outputs: Sequence[Tensor], bucket: int) -> None:
        """Enqueues the copies of the model's outputs to the host."""
        for host, output in zip(self._host_outputs, outputs, strict=True):
            self._calls.copy(host.tensor[:bucket], output)

    def fetched(self, bucket: int) -> list[Array]:
        """The outputs on the host; once the stream has been waited for, and until its next launch."""
        return [host.array[:bucket] for host in self._host_outputs]

    def forget(self, bucket: int) -> None:
        """Zeroes what was gathered, so that it is nobody's padding any more."""
        for host in self.host_inputs:
            host.array[:bucket] = 0


class Feed(Protocol):
    """A way from the slots into `Buffers.inputs`."""

    @property
    def name(self) -> str:
        """For logs and reports."""
        ...

    def fill(self, slots: Slots, bucket: int, *, pad: bool = False) -> None:
        """The host's part, before the launch. Rows past the last slot are padding.

        Args:
            pad: it must be of this batch, or zeros; otherwise it may be what an earlier batch left there.
        """
        ...

    def enqueue(self, bucket: int) -> None:
        """The device's part: the same launches for every batch of a size, so that they can be captured."""
        ...


class StagedFeed:
    """The host gathers rows into page-locked staging, the copy engine takes them over as one block."""

    name = "staged"

    def __init__(
        self, calls: CudaCalls, arena: _ring.Arena, signature: ModelSignature, buffers: Buffers
    ) -> None:
        self._calls = calls
        self._arena = arena
        self._buffers = buffers
        self._rows = [
            (offset, item_rows(host.array, spec))
            for spec, offset, host in zip(
                signature.inputs, signature.input_offsets, buffers.host_inputs, strict=True
            )
        ]

    def fill(self, slots: Slots, bucket: int, *, pad: bool = False) -> None:
        """See `Feed`."""
        for offset, rows in self._rows:
            self._arena.gather_inputs(slots, offset, rows)
        if pad:
            for host in self._buffers.host_inputs:
                host.array[len(slots) : bucket] = 0

    def enqueue(self, bucket: int) -> None:
        """See `Feed`."""
        for device, host in zip(self._buffers.inputs, self._buffers.host_inputs, strict=True):
            self._calls.copy(device[:bucket], host.tensor[:bucket])


class MappedFeed:
    """A kernel reads the rows out of the mapped slab itself; the host only says which.

    No memory is copied by the host at all, which pays for large batches; a small one waits for the kernel.
    """

    name = "mapped"

    def __init__(self, calls: CudaCalls, slab: Tensor, signature: ModelSignature, buffers: Buffers) -> None:
        """`slab`: the arena's input slab, as `CudaCalls.mapped` gave it."""
        self._calls = calls
        self._slab = slab
        self._offsets = signature.input_offsets
        self._buffers = buffers

    def fill(self, slots: Slots, bucket: int, *, pad: bool = False) -> None:
        """See `Feed`. Padding always repeats the first row: others may be somebody else's by now."""
        indexes = self._buffers.host_indexes.array
        indexes[: len(slots)] = slots
        indexes[len(slots) : bucket] = slots[0]

    def enqueue(self, bucket: int) -> None:
        """See `Feed`."""
        indexes = self._buffers.indexes[:bucket]
        self._calls.copy(indexes, self._buffers.host_indexes.tensor[:bucket])
        for offset, device in zip(self._offsets, self._buffers.inputs, strict=True):
            self._calls.select_rows(self._slab, offset, indexes, device[:bucket])
