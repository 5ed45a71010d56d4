"""CUDA without a GPU: nothing that is enqueued happens before the stream is waited for.

So whatever forgets to wait reads old bytes, and whatever overwrites a buffer too early sends wrong ones. Host
memory and device memory are kept apart: an operation on the wrong kind is an error, as it is on a device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from scheduler.executor.cuda_calls import Array, Graph, HostBuffer, Layout, NotMapped
from scheduler.executor.cuda_faults import Fault, fault_of
from scheduler.signature import ModelSignature

T = TypeVar("T")
Work = Callable[[], None]


class AcceleratorError(RuntimeError):
    """As torch raises what the driver reports: with its number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"CUDA error: {text}")
        self.error_code = code


class OutOfMemoryError(RuntimeError):
    """As torch's allocator raises it."""


def illegal_address() -> AcceleratorError:
    return AcceleratorError(700, "an illegal memory access was encountered")


@dataclass(eq=False)
class FakeTensor:
    """An array in one of the two memories; `where` is host, mapped or device."""

    array: Array
    where: str

    def __getitem__(self, rows: slice) -> "FakeTensor":
        return FakeTensor(self.array[rows], self.where)

    def __len__(self) -> int:
        return len(self.array)


@dataclass(eq=False)
class FakeStream:
    urgent: bool
    queue: list[Work] = field(default_factory=list)


class FakeGraph:
    def __init__(self, calls: "FakeCuda", work: Sequence[Work]) -> None:
        self._calls = calls
        self.work = work
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self._calls.cost_ns += self._calls.graph_cost_ns
        self._calls.enqueue_all(self.work)


class FakeCuda:
    """One device, with as much memory as it is given and the faults that are planned for it.

    Attributes:
        free: bytes that can be allocated.
        lost: once set, every call raises it.
        refuse_mapping: why host memory cannot be mapped.
        refuse_capture: raised by every capture.
        launch_cost_ns, graph_cost_ns: of the host, for each launch of a kernel or copy, or of a graph.
        select_cost_ns, copy_cost_ns: of the device, in a graph or not.
    """

    def __init__(self, free: int = 1 << 40, advance: Callable[[int], None] = lambda ns: None) -> None:
        self.free = free
        self.uuid = "GPU-fake"
        self.lost: Exception | None = None
        self.refuse_mapping = ""
        self.refuse_capture: Exception | None = None
        self.select_from: Callable[[Array], Array] = lambda index: index  # a broken kernel reads other rows
        self.launch_cost_ns = 10
        self.graph_cost_ns = 1
        self.select_cost_ns = 0
        self.copy_cost_ns = 0
        self.cost_ns = 0
        self.loading: list[Work] = []  # what models enqueued on another stream
        self.graphs: list[FakeGraph] = []
        self.streams: list[FakeStream] = []
        self.mappings: list[Array] = []
        self.released = 0
        self.asked = 0  # how often the device was tried after an error
        self._advance = advance
        self._current: list[FakeStream] = []
        self._capturing: list[Work] | None = None
        self._used = 0
        self._peak = 0

    # -- for models ---------------------------------------------------------------------------

    def enqueue(self, work: Work) -> None:
        """One launch on the current stream."""
        self._check()
        self.cost_ns += self.launch_cost_ns
        self.enqueue_all([work])

    def enqueue_all(self, work: Sequence[Work]) -> None:
        self._check()
        if self._capturing is not None:
            self._capturing.extend(work)
        else:
            self._current[-1].queue.extend(work)

    @contextmanager
    def allocated(self, size: int) -> Iterator[None]:
        """Holds so many bytes meanwhile. Raises OutOfMemoryError when they are not there."""
        if self._used + size > self.free:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self._used += size
        self._peak = max(self._peak, self._used)
        try:
            yield
        finally:
            self._used -= size

    # -- CudaCalls ----------------------------------------------------------------------------

    def stream(self, *, urgent: bool) -> FakeStream:
        self._check()
        self.streams.append(FakeStream(urgent))
        return self.streams[-1]

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        self._current.append(stream)
        try:
            yield
        finally:
            self._current.pop()

    def finish(self, stream: FakeStream) -> None:
        self._check()
        if self._capturing is not None:
            raise AcceleratorError(900, "operation not permitted when stream is capturing")
        work, stream.queue[:] = list(stream.queue), []
        for each in work:
            each()
        self._advance(self.cost_ns)
        self.cost_ns = 0
        self._check()

    def synchronize(self) -> None:
        self._check()
        loading, self.loading[:] = list(self.loading), []
        for each in loading:
            each()

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostBuffer:
        array = np.zeros(shape, dtype)
        return HostBuffer(array, FakeTensor(array, "host"))

    def device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FakeTensor:
        self._check()
        tensor = FakeTensor(np.empty(shape, dtype), "device")
        size = tensor.array.nbytes
        if self._used + size > self.free:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
        self._used += size
        tensor.array.view(np.uint8).fill(0xA5)  # garbage until the zeroing has run
        self.enqueue(lambda: tensor.array.fill(0))
        return tensor

    def mapped(self, rows: Array) -> FakeTensor:
        self._check()
        if self.refuse_mapping:
            raise NotMapped(self.refuse_mapping)
        self.mappings.append(rows)
        return FakeTensor(rows, "mapped")

    def layout(self, tensor: FakeTensor) -> Layout:
        return Layout(tensor.array.shape, tensor.array.dtype)

    def copy(self, into: FakeTensor, source: FakeTensor) -> None:
        assert into.array.shape == source.array.shape, (into.array.shape, source.array.shape)
        assert into.array.dtype == source.array.dtype
        assert "device" in (into.where, source.where)

        def engine() -> None:
            self.cost_ns += self.copy_cost_ns
            np.copyto(into.array, source.array)

        self.enqueue(engine)

    def shaped(self, tensor: FakeTensor, shape: tuple[int, ...]) -> FakeTensor:
        assert tensor.array.ndim == 1
        return FakeTensor(tensor.array[: math.prod(shape)].reshape(shape), tensor.where)

    def select_rows(self, rows: FakeTensor, offset: int, indexes: FakeTensor, into: FakeTensor) -> None:
        assert (rows.where, indexes.where, into.where) == ("mapped", "device", "device")
        assert offset % 64 == 0

        def kernel() -> None:
            self.cost_ns += self.select_cost_ns
            target = into.array.view(np.uint8).reshape(len(into), -1)
            picked = self.select_from(indexes.array)
            np.copyto(target, rows.array[picked, offset : offset + target.shape[1]])

        self.enqueue(kernel)

    def capture(self, stream: FakeStream, work: Callable[[], T]) -> tuple[Graph, T]:
        self._check()
        assert not stream.queue, "captured with work still waiting on the stream"
        if self.refuse_capture is not None:
            raise self.refuse_capture
        self._capturing = []
        try:
            with self.on(stream):
                kept = work()
            graph = FakeGraph(self, self._capturing)
        finally:
            self._capturing = None
            self.cost_ns = 0
        self.graphs.append(graph)
        return graph, kept

    def fault(self, error: Exception) -> Fault:
        fault = fault_of(error)
        if fault is not None:
            return fault
        self.asked += 1
        return Fault.LOST if self.lost is not None else Fault.MODEL

    def free_bytes(self) -> int:
        return self.free - self._used

    def peak_bytes(self, work: Callable[[], None]) -> int:
        self._peak = self._used
        before = self._used
        work()
        return self._peak - before

    def cached_bytes(self) -> int:
        return 0

    def release_cache(self) -> None:
        self.released += 1

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost


Compute = Callable[[Sequence[Array]], Sequence[Array]]


class FakeDeviceModel:
    """A model that is a Python function of arrays; it computes when the stream comes to it.

    Attributes:
        item_bytes: what a launch allocates for every row.
        at_launch: called with the size of each launch; may raise, as a model does when it is called.
        launches: the size of each.
    """

    def __init__(self, calls: FakeCuda, signature: ModelSignature, compute: Compute) -> None:
        self._calls = calls
        self._compute = compute
        self.signature = signature
        self.variant = "plain"
        self.item_bytes = 0
        self.at_launch: Callable[[int], None] = lambda rows: None
        self.launches: list[int] = []
        self.arrived = False
        calls.loading.append(self._arrive)

    def _arrive(self) -> None:
        self.arrived = True

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        rows = len(inputs[0])
        assert all(tensor.where == "device" for tensor in inputs)
        self.launches.append(rows)
        self.at_launch(rows)
        with self._calls.allocated(self.item_bytes * rows):
            outputs = [
                FakeTensor(np.full((rows, *shape), 99, spec.data_type.dtype), "device")
                for spec, shape in zip(self.signature.outputs, self._shapes(inputs), strict=True)
            ]

        def run() -> None:
            assert self.arrived, "its weights have not"
            for output, array in zip(outputs, self._compute([t.array for t in inputs]), strict=True):
                np.copyto(output.array, array, casting="unsafe")

        self._calls.enqueue(run)
        return outputs

    def _shapes(self, inputs: Sequence[FakeTensor]) -> list[tuple[int, ...]]:
        """Of the outputs of an item; known as soon as the shapes of the inputs are, as on a device."""
        if not self.signature.is_dynamic:
            return [spec.shape for spec in self.signature.outputs]
        return [array.shape[1:] for array in self._compute([np.zeros_like(t.array) for t in inputs])]
