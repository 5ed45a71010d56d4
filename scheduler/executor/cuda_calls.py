"""The few calls to CUDA that instances make, and their one real implementation, over torch.

Instances see only the protocol, so that a fake which defers all work until it is waited for can take
CUDA's place in tests. Tensors are opaque here: they can be cut at their first dimension, `tensor[:n]`,
and be handed back.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from scheduler.executor.cuda_faults import Fault

Array = npt.NDArray[Any]
Tensor = Any
Stream = Any
T = TypeVar("T")


class NotMapped(Exception):
    """Host memory that the device cannot be given; its text says why."""


class Layout(NamedTuple):
    """Of a tensor; `dtype` is numpy's, or torch's own where numpy has none."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True, slots=True)
class HostBuffer:
    """Page-locked host memory, which the copy engine reads and writes by itself.

    `array` and `tensor` are the same memory.
    """

    array: Array
    tensor: Tensor


class Graph(Protocol):
    """Launches that were captured, to be launched again as one."""

    def replay(self) -> None:
        """Enqueues them on the current stream."""
        ...


class CudaCalls(Protocol):
    """One device. Work is enqueued on the current stream, in order, and done when `finish` returns.

    Whatever raises, raises the exceptions of torch; `fault` tells what they mean. Errors of work that was
    enqueued may come with any later call.
    """

    def stream(self, *, urgent: bool) -> Stream:
        """A new stream; work on an urgent one goes before what waits on others."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Makes device and stream current for this thread."""
        ...

    def finish(self, stream: Stream) -> None:
        """Blocks until all work on the stream is done, without holding the GIL."""
        ...

    def synchronize(self) -> None:
        """Blocks until all work on all streams is done, that of threads without a stream of ours too."""
        ...

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostBuffer:
        """Page-locked host memory, zeroed."""
        ...

    def device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Device memory, zeroed on the current stream."""
        ...

    def mapped(self, rows: Array) -> Tensor:
        """Host memory that is not ours, uint8 `[n, row_bytes]`, page-locked in place and seen by kernels.

        For the life of the process.

        Raises:
            NotMapped: driver or kernel refuse.
        """
        ...

    def layout(self, tensor: Tensor) -> Layout:
        """Shape and dtype of a tensor."""
        ...

    def copy(self, into: Tensor, source: Tensor) -> None:
        """Between host and device, or on the device, of one shape and dtype."""
        ...

    def shaped(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The first elements of a tensor of one dimension, on either side, in this shape. Copies nothing."""
        ...

    def select_rows(self, rows: Tensor, offset: int, indexes: Tensor, into: Tensor) -> None:
        """into[i] = the bytes from `offset` of rows[indexes[i]], by a kernel.

        Args:
            rows: of `mapped`.
            offset: a multiple of 64.
            indexes: int64 `[n]` on the device, each a row.
            into: `[n, ...]` on the device.
        """
        ...

    def capture(self, stream: Stream, work: Callable[[], T]) -> tuple[Graph, T]:
        """Captures what `work` enqueues on the stream instead of running it; returns its answer too.

        What it has returned stays valid as long as the caller keeps it and the graph.
        """
        ...

    def fault(self, error: Exception) -> Fault:
        """What an error means, where necessary by trying whether the device still answers."""
        ...

    def free_bytes(self) -> int:
        """What can still be allocated, by the limit of this process and by the device."""
        ...

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """Runs `work`; how much more was allocated at its peak than before it."""
        ...

    def release_cache(self) -> None:
        """Gives memory that is cached but not used back to the device."""
        ...
