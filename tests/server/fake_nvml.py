"""NVML over one GPU that a test sets: what the service calls of nvidia-ml-py, with its real errors."""

import queue
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pynvml

UUID = "GPU-5f9f5ac2-7d3e-4f3a-9a55-0f6f4c1f2a10"
XID_EVENT = pynvml.nvmlEventTypeXidCriticalError
DOUBLE_BIT_EVENT = pynvml.nvmlEventTypeDoubleBitEccError
GIB = 1 << 30


class FakeNvml:
    """Stands in for the module `pynvml`.

    Attributes:
        failing: NVML's error number by the name of a function.
        events: what a wait returns next: (type, data), or an error number.
        calls: how often each function was called.
        timed_out: released by each wait that nothing ended.
        opened: sessions that are open.
        sets: event sets that exist.
    """

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.events = queue.Queue[tuple[int, int] | int]()
        self.calls = Counter[str]()
        self.timed_out = threading.Semaphore(0)
        self.opened = 0
        self.sets = 0
        self.supported: int = XID_EVENT | DOUBLE_BIT_EVENT | pynvml.nvmlEventTypePState
        self.subscribed = 0
        self.utilization = 42
        self.used = 3 * GIB
        self.total = 12 * GIB
        self.temperature = 61
        self.uncorrected = 2
        self.clock_reasons: int = pynvml.nvmlClocksEventReasonSwPowerCap
        self.recovery_action: int | None = 0

    def __getattr__(self, name: str) -> Any:
        """Numbers and error classes; never a function, which would reach a real driver."""
        value = getattr(pynvml, name)
        assert isinstance(value, int | type), name
        return value

    def nvmlInit(self) -> None:
        self._enter("nvmlInit", opens=True)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self._enter("nvmlShutdown")
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._enter("nvmlDeviceGetHandleByUUID")
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        self._enter("nvmlDeviceGetUtilizationRates", handle)
        return SimpleNamespace(gpu=self.utilization, memory=7)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._enter("nvmlDeviceGetMemoryInfo", handle)
        return SimpleNamespace(used=self.used, total=self.total, free=self.total - self.used)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        self._enter("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self.temperature

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        self._enter("nvmlDeviceGetTotalEccErrors", handle)
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return self.uncorrected

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        self._enter("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return self.clock_reasons

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[SimpleNamespace]:
        self._enter("nvmlDeviceGetFieldValues", handle)
        assert fields == [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        if self.recovery_action is None:
            return [
                SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, value=SimpleNamespace(uiVal=1))
            ]
        return [
            SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, value=SimpleNamespace(uiVal=self.recovery_action))
        ]

    def nvmlDeviceGetSupportedEventTypes(self, handle: str) -> int:
        self._enter("nvmlDeviceGetSupportedEventTypes", handle)
        return self.supported

    def nvmlEventSetCreate(self) -> str:
        self._enter("nvmlEventSetCreate")
        self.sets += 1
        return "set"

    def nvmlDeviceRegisterEvents(self, handle: str, types: int, events: str) -> None:
        self._enter("nvmlDeviceRegisterEvents", handle)
        assert self.sets == 1, events
        assert types & ~self.supported == 0, "an unsupported type makes the real one refuse them all"
        self.subscribed = types

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> SimpleNamespace:
        self._enter("nvmlEventSetWait_v2")
        assert (self.sets, events) == (1, "set")
        try:
            event = self.events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            self.timed_out.release()
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT) from None
        if isinstance(event, int):
            raise pynvml.NVMLError(event)
        return SimpleNamespace(eventType=event[0], eventData=event[1])

    def nvmlEventSetFree(self, events: str) -> None:
        self._enter("nvmlEventSetFree")
        self.sets -= 1

    def _enter(self, name: str, handle: str = "handle", *, opens: bool = False) -> None:
        self.calls[name] += 1
        assert handle == "handle"
        if self.opened == 0 and not opens:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if name in self.failing:
            raise pynvml.NVMLError(self.failing[name])
