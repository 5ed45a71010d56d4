"""CUDA as torch gives it: the implementation of `CudaCalls`."""

import ctypes
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch

from scheduler.executor.cuda_calls import Array, Graph, HostBuffer, Layout, NotMapped, Tensor
from scheduler.executor.cuda_faults import Fault, fault_of
from scheduler.executor.error_text import first_line
from scheduler.executor.runner import ModelUnusable

T = TypeVar("T")

# Of cuMemHostRegister: for all contexts of the process, and mapped into the device's addresses.
_PORTABLE_AND_MAPPED = 0x01 | 0x02
# The widest first. Rows are moved in elements as wide as their length allows: a kernel that loads single
# bytes over PCIe would use a sixteenth of each transaction.
_BY_WIDTH = (
    (16, torch.complex128),
    (8, torch.int64),
    (4, torch.int32),
    (2, torch.int16),
    (1, torch.uint8),
)


class TorchStream:
    """A stream, and the event that is waited for."""

    def __init__(self, device: torch.device, *, urgent: bool, spin: bool) -> None:
        # Lower is more urgent; CUDA clamps to what the device has.
        self.stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event(blocking=not spin)  # type: ignore[no-untyped-call]


class TorchCuda:
    """One GPU. Its memory limit holds for the whole process."""

    def __init__(self, device: str, *, memory_fraction: float = 1.0, spin: bool = False) -> None:
        """Args:
            device: "cuda:N".
            memory_fraction: of the device's memory, the most that this process allocates.
            spin: wait for the device in a loop; shorter, and takes a core per stream that computes.

        Raises:
            ModelUnusable: there is no such device, or it does not answer.
        """
        self._device = torch.device(device)
        self._fraction = memory_fraction
        self._spin = spin
        self._spoilt: list[torch.cuda.CUDAGraph] = []
        self._mapped: list[Array] = []
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.set_device(self._device)
            torch.cuda.set_per_process_memory_fraction(memory_fraction, self._device)
            torch.zeros(1, device=self._device)
            torch.cuda.synchronize(self._device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
            raise ModelUnusable(f"device {device} cannot be used: {first_line(error)}") from error

    @property
    def uuid(self) -> str:
        """By which NVML knows the device too, whatever CUDA_VISIBLE_DEVICES makes of its number."""
        return str(torch.cuda.get_device_properties(self._device).uuid)

    def stream(self, *, urgent: bool) -> TorchStream:
        """See `CudaCalls`."""
        return TorchStream(self._device, urgent=urgent, spin=self._spin)

    @contextmanager
    def on(self, stream: TorchStream) -> Iterator[None]:
        """See `CudaCalls`."""
        with torch.cuda.stream(stream.stream), torch.inference_mode():
            yield

    def finish(self, stream: TorchStream) -> None:
        """See `CudaCalls`. Not by polling from Python: that would keep the GIL from the other streams."""
        stream.done.record(stream.stream)
        stream.done.synchronize()

    def synchronize(self) -> None:
        """See `CudaCalls`."""
        torch.cuda.synchronize(self._device)

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostBuffer:
        """See `CudaCalls`."""
        tensor = torch.zeros(shape, dtype=_torch_dtype(dtype), pin_memory=True)
        return HostBuffer(tensor.numpy(), tensor)

    def device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """See `CudaCalls`."""
        return torch.zeros(shape, dtype=_torch_dtype(dtype), device=self._device)

    def mapped(self, rows: Array) -> Tensor:
        """See `CudaCalls`."""
        address = _map(rows)
        self._mapped.append(rows)  # never unmapped while the driver knows it
        try:
            return torch.as_tensor(_DeviceView(rows, address), device=self._device)
        except (RuntimeError, ValueError) as error:
            raise NotMapped(first_line(error)) from error

    def layout(self, tensor: Tensor) -> Layout:
        """See `CudaCalls`."""
        try:
            return Layout(tuple(tensor.shape), torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        except TypeError:
            return Layout(tuple(tensor.shape), tensor.dtype)

    def copy(self, into: Tensor, source: Tensor) -> None:
        """See `CudaCalls`."""
        into.copy_(source, non_blocking=True)

    def shaped(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """See `CudaCalls`."""
        return tensor[: math.prod(shape)].view(shape)

    def select_rows(self, rows: Tensor, offset: int, indexes: Tensor, into: Tensor) -> None:
        """See `CudaCalls`."""
        flat = into.reshape(len(into), -1)
        item_bytes = flat.shape[1] * flat.element_size()
        wide = next(dtype for width, dtype in _BY_WIDTH if item_bytes % width == 0)
        source = rows[:, offset : offset + item_bytes].view(wide)
        torch.index_select(source, 0, indexes, out=flat.view(torch.uint8).view(wide))

    def capture(self, stream: TorchStream, work: Callable[[], T]) -> tuple[Graph, T]:
        """See `CudaCalls`. Other threads may go on using the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        # Each has a pool of its own: the sizes of a model's batches double, so that is at most twice what one
        # for all would take, and a capture that fails spoils no other.
        pool = torch.cuda.graph_pool_handle()
        # A device tensor that the collector frees in the middle of a capture would spoil it.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with self.on(stream):
                stream.stream.synchronize()
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    kept = work()
                except BaseException:
                    self._abandon(graph, pool)
                    raise
                try:
                    graph.capture_end()
                except BaseException:
                    self._abandon(graph, pool)
                    raise
        finally:
            if was_enabled:
                gc.enable()
        return graph, kept

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Ends a capture that has failed. Where it was spoilt torch does not tell its allocator, so we do."""
        with suppress(Exception):
            graph.capture_end()
            return
        self._spoilt.append(graph)  # the allocator may still ask it whether a stream is being captured
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            if (call := getattr(torch._C, name, None)) is not None:
                with suppress(Exception):
                    call(self._device.index, pool)

    def fault(self, error: Exception) -> Fault:
        """See `CudaCalls`."""
        fault = fault_of(error)
        if fault is not None:
            return fault
        try:
            torch.cuda.synchronize(self._device)
        except Exception:  # of any kind: it does not answer
            return Fault.LOST
        return Fault.MODEL

    def free_bytes(self) -> int:
        """See `CudaCalls`."""
        free, total = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        return max(0, min(free, int(total * self._fraction) - reserved)) + self.cached_bytes()

    def cached_bytes(self) -> int:
        """What the allocator has taken from the device and not given out."""
        return int(torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """See `CudaCalls`."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return max(0, torch.cuda.max_memory_allocated(self._device) - before)

    def release_cache(self) -> None:
        """See `CudaCalls`."""
        torch.cuda.empty_cache()


class _DeviceView:
    """Registered host memory, as the protocol by which torch takes over device memory without a copy."""

    def __init__(self, rows: Array, address: int) -> None:
        self._rows = rows  # kept alive by the tensor
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": rows.shape,
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
        }


def _map(rows: Array) -> int:
    """Page-locks the memory and returns its address on the device of the current context.

    By the driver, not by cudaHostRegister, whose refusal stays behind as the last error of the runtime: the
    next launch would raise it.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NotMapped(str(error)) from error
    driver.cuMemHostRegister_v2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
    driver.cuMemHostGetDevicePointer_v2.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    code = driver.cuMemHostRegister_v2(rows.ctypes.data, rows.nbytes, _PORTABLE_AND_MAPPED)
    if code != 0:  # also if it is registered already: perhaps that was other memory at the same address
        raise NotMapped(f"cuMemHostRegister of {rows.nbytes} bytes: CUresult {code}")
    address = ctypes.c_void_p()
    code = driver.cuMemHostGetDevicePointer_v2(ctypes.byref(address), rows.ctypes.data, 0)
    if code != 0 or address.value is None:
        raise NotMapped(f"cuMemHostGetDevicePointer: CUresult {code}")
    return address.value


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
