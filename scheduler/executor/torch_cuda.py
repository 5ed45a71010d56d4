"""CUDA as torch gives it: the implementation of `CudaCalls`."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch

from scheduler.executor.cuda_calls import Array, Graph, HostBuffer, Layout, NotMapped, Tensor
from scheduler.executor.cuda_faults import Fault, fault_of
from scheduler.executor.runner import ModelUnusable

T = TypeVar("T")

# cudaHostRegister's flags: visible to all contexts of the process, and mapped into the device's addresses.
_PORTABLE_AND_MAPPED = 0x01 | 0x02
# CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM of the driver API.
_SAME_POINTER = 91
_ALREADY_REGISTERED = 712
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
    """A stream, the event that is waited for, and the memory pool of its graphs."""

    def __init__(self, device: torch.device, *, urgent: bool, spin: bool) -> None:
        # Lower is more urgent; CUDA clamps to what the device has.
        self.stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]
        self.done = torch.cuda.Event(blocking=not spin)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()


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
        try:
            torch.cuda.set_device(self._device)
            torch.cuda.set_per_process_memory_fraction(memory_fraction, self._device)
            torch.zeros(1, device=self._device)
            torch.cuda.synchronize(self._device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
            raise ModelUnusable(f"device {device} cannot be used: {_first_line(error)}") from error

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

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostBuffer:
        """See `CudaCalls`."""
        tensor = torch.zeros(shape, dtype=_torch_dtype(dtype), pin_memory=True)
        return HostBuffer(tensor.numpy(), tensor)

    def device(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """See `CudaCalls`."""
        return torch.zeros(shape, dtype=_torch_dtype(dtype), device=self._device)

    def mapped(self, rows: Array) -> Tensor:
        """See `CudaCalls`."""
        if not _host_pointers_are_device_pointers(self._device.index or 0):
            raise NotMapped("this device has another address for registered host memory")
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(runtime.cudaHostRegister(rows.ctypes.data, rows.nbytes, _PORTABLE_AND_MAPPED))
        if code not in (0, _ALREADY_REGISTERED):
            raise NotMapped(f"cudaHostRegister of {rows.nbytes} bytes: cudaError {code}")
        try:
            return torch.as_tensor(_DeviceView(rows), device=self._device)
        except (RuntimeError, ValueError) as error:
            raise NotMapped(_first_line(error)) from error

    def layout(self, tensor: Tensor) -> Layout:
        """See `CudaCalls`."""
        try:
            return Layout(tuple(tensor.shape), torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        except TypeError:
            return Layout(tuple(tensor.shape), tensor.dtype)

    def copy(self, into: Tensor, source: Tensor) -> None:
        """See `CudaCalls`."""
        into.copy_(source, non_blocking=True)

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
        # A device tensor that the collector frees in the middle of a capture would spoil it.
        gc.collect()
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with self.on(stream):
                stream.stream.synchronize()
                graph.capture_begin(pool=stream.pool, capture_error_mode="thread_local")
                try:
                    kept = work()
                except BaseException:
                    with suppress(Exception):  # it says once more that the capture is spoilt
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            if was_enabled:
                gc.enable()
        return graph, kept

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
        unused = reserved - torch.cuda.memory_allocated(self._device)
        return max(0, min(free, int(total * self._fraction) - reserved)) + unused

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

    def __init__(self, rows: Array) -> None:
        self._rows = rows  # kept alive by the tensor
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": rows.shape,
            "typestr": "|u1",
            "data": (rows.ctypes.data, False),
            "strides": None,
        }


def _host_pointers_are_device_pointers(index: int) -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    value = ctypes.c_int(0)
    return driver.cuDeviceGetAttribute(ctypes.byref(value), _SAME_POINTER, index) == 0 and value.value == 1


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
