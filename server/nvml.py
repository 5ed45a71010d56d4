"""One GPU as NVML shows it: its readings, and the Xids that its driver reports.

NVML comes with the driver, nvidia-ml-py with the extra `gpu`; both are looked for only when a GPU is
opened, so that an engine on the CPU needs neither. No reading is promised: which of them exist depends on the
GPU, its driver and the container.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from server.xid import DOUBLE_BIT_ERROR

log = structlog.get_logger()


class NvmlUnavailable(Exception):
    """NVML cannot do this here; the message says why, `code` is NVML's number or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class DeviceGone(Exception):
    """The GPU has fallen off the bus, or does nothing before it is reset."""


class Device:
    """One GPU, opened. One thread may take readings while another waits for Xids."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._events: Any = None
        self._readings = dict(_READINGS)
        self._missing: set[str] = set()

    def read(self) -> dict[str, float]:
        """The readings that can be had now, by name.

        Raises:
            DeviceGone: the GPU is lost.
        """
        found: dict[str, float] = {}
        for what, take in tuple(self._readings.items()):
            try:
                with _our_errors(self._nvml):
                    found |= take(self._nvml, self._handle)
            except NvmlUnavailable as error:
                self._explain(what, error)
            else:
                self._missing.discard(what)
        return found

    def recovery_action(self) -> int | None:
        """What the driver asks for, as NVML numbers it (`NVML_GPU_RECOVERY_ACTION_...`); None: not known.

        Raises:
            DeviceGone: the GPU is lost.
        """
        nvml = self._nvml
        try:
            with _our_errors(nvml):
                fields = nvml.nvmlDeviceGetFieldValues(
                    self._handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
                )
        except NvmlUnavailable:
            return None
        return int(fields[0].value.uiVal) if fields[0].nvmlReturn == nvml.NVML_SUCCESS else None

    def subscribe(self) -> None:
        """Has the driver keep Xids and double-bit errors from now on for `wait_for_xid`.

        Raises:
            NvmlUnavailable: this GPU does not report them.
            DeviceGone: the GPU is lost.
        """
        nvml = self._nvml
        wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
        with _our_errors(nvml):
            offered = nvml.nvmlDeviceGetSupportedEventTypes(self._handle) & wanted
            if not offered & nvml.nvmlEventTypeXidCriticalError:
                raise NvmlUnavailable("Not Supported", nvml.NVML_ERROR_NOT_SUPPORTED)
            events = nvml.nvmlEventSetCreate()
            try:
                nvml.nvmlDeviceRegisterEvents(self._handle, offered, events)
            except nvml.NVMLError:
                nvml.nvmlEventSetFree(events)
                raise
        self._events = events

    def wait_for_xid(self, timeout_ms: int) -> int | None:
        """The next Xid; None when none came in time. A double-bit error of the memory counts as Xid 48.

        Raises:
            NvmlUnavailable: it could not wait; may return at once.
            DeviceGone: the GPU is lost.
        """
        nvml = self._nvml
        try:
            with _our_errors(nvml):
                event = nvml.nvmlEventSetWait_v2(self._events, timeout_ms)
        except NvmlUnavailable as error:
            if error.code == nvml.NVML_ERROR_TIMEOUT:
                return None
            raise
        if event.eventType == nvml.nvmlEventTypeDoubleBitEccError:
            return DOUBLE_BIT_ERROR
        return int(event.eventData)

    def close(self) -> None:
        """Lets go of NVML. Nothing else may be called any more, and nothing may be waiting."""
        try:
            with _our_errors(self._nvml):
                if self._events is not None:
                    self._nvml.nvmlEventSetFree(self._events)
                self._nvml.nvmlShutdown()
        except (NvmlUnavailable, DeviceGone) as error:
            log.info("NVML was not closed", error=str(error))

    def _explain(self, what: str, error: NvmlUnavailable) -> None:
        """Once for a reading that does not exist, and once for each time that one is lost."""
        nvml = self._nvml
        never = (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
        )
        if error.code in never:
            del self._readings[what]
            log.info("GPU does not tell this", reading=what, error=str(error))
        elif what not in self._missing:
            self._missing.add(what)
            log.warning("GPU reading is missing", reading=what, error=str(error))


def open_device(uuid: str, nvml: Any = None) -> Device:
    """Opens the GPU of this UUID, with or without its `GPU-` in front.

    An index would not do: NVML knows nothing of CUDA_VISIBLE_DEVICES. `nvml` is what stands in for the module
    of nvidia-ml-py, in tests.

    Raises:
        NvmlUnavailable: no NVML here, none that fits the driver, or it does not know this GPU.
        DeviceGone: the GPU is lost.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailable(
                f"nvidia-ml-py is not installed, which tickring[gpu] brings: {error}"
            ) from error
        nvml = pynvml
    with _our_errors(nvml):
        nvml.nvmlInit()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except nvml.NVMLError:
            nvml.nvmlShutdown()
            raise
    return Device(nvml, handle)


@contextmanager
def _our_errors(nvml: Any) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
            raise DeviceGone(str(error)) from error
        raise NvmlUnavailable(str(error), error.value) from error


def _utilization(nvml: Any, handle: Any) -> dict[str, float]:
    return {"gpu_utilization_ratio": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100}


def _memory(nvml: Any, handle: Any) -> dict[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"gpu_memory_used_bytes": memory.used, "gpu_memory_total_bytes": memory.total}


def _temperature(nvml: Any, handle: Any) -> dict[str, float]:
    return {
        "gpu_temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }


def _uncorrected_errors(nvml: Any, handle: Any) -> dict[str, float]:
    count = nvml.nvmlDeviceGetTotalEccErrors(
        handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    )
    return {"gpu_ecc_uncorrected_total": count}


def _slowdown(nvml: Any, handle: Any) -> dict[str, float]:
    # Not the power cap: reaching it is how a GPU works under full load.
    harmful = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    return {"gpu_slowdown": int(bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & harmful))}


_READINGS: Mapping[str, Callable[[Any, Any], dict[str, float]]] = {
    "utilization": _utilization,
    "memory": _memory,
    "temperature": _temperature,
    "uncorrected memory errors": _uncorrected_errors,
    "slowdown": _slowdown,
}
