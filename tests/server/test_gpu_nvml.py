"""What is read of a GPU, and what becomes of NVML's errors."""

import ctypes
import sys

import pynvml
import pytest
from structlog.testing import capture_logs

from server.nvml import DeviceGone, NvmlUnavailable, open_device
from tests.server.fake_nvml import DOUBLE_BIT_EVENT, GIB, UUID, XID_EVENT, FakeNvml

ALL = {
    "gpu_utilization_ratio": 0.42,
    "gpu_memory_used_bytes": 3 * GIB,
    "gpu_memory_total_bytes": 12 * GIB,
    "gpu_temperature_celsius": 61,
    "gpu_ecc_uncorrected_total": 2,
    "gpu_slowdown": 0,
}
# By the function behind them.
READINGS = {
    "nvmlDeviceGetUtilizationRates": {"gpu_utilization_ratio"},
    "nvmlDeviceGetMemoryInfo": {"gpu_memory_used_bytes", "gpu_memory_total_bytes"},
    "nvmlDeviceGetTemperature": {"gpu_temperature_celsius"},
    "nvmlDeviceGetTotalEccErrors": {"gpu_ecc_uncorrected_total"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"gpu_slowdown"},
}
GONE = [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED]


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


@pytest.mark.parametrize("uuid", [UUID, UUID.removeprefix("GPU-")])
def test_readings_of_the_gpu_with_this_uuid(nvml: FakeNvml, uuid: str) -> None:
    """Whether or not torch has put NVML's prefix in front."""
    device = open_device(uuid, nvml)
    assert device.read() == ALL
    device.close()
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("reasons", "slowed"),
    [
        (pynvml.nvmlClocksEventReasonNone, 0),
        (pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonSwPowerCap, 0),
        (pynvml.nvmlClocksEventReasonHwSlowdown, 1),
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, 1),
        (pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonSwPowerCap, 1),
        (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, 1),
    ],
)
def test_slowdown_is_heat_or_power_brake(nvml: FakeNvml, reasons: int, slowed: int) -> None:
    """Not the power cap, which any GPU reaches under full load."""
    nvml.clock_reasons = reasons
    assert open_device(UUID, nvml).read()["gpu_slowdown"] == slowed


@pytest.mark.parametrize(
    "code",
    [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NO_PERMISSION],
)
@pytest.mark.parametrize("function", READINGS)
def test_what_a_gpu_does_not_have_is_left_out_and_not_asked_again(
    nvml: FakeNvml, function: str, code: int
) -> None:
    """By its hardware, by its driver's version, or by what the container may."""
    nvml.failing[function] = code
    device = open_device(UUID, nvml)
    for _ in range(3):
        assert device.read().keys() == ALL.keys() - READINGS[function]
    assert nvml.calls[function] == 1


@pytest.mark.parametrize("function", READINGS)
def test_a_reading_that_is_lost_for_a_while_comes_back(nvml: FakeNvml, function: str) -> None:
    """The others stay, and each loss is told once."""
    device = open_device(UUID, nvml)
    with capture_logs() as lines:
        for _ in range(2):
            nvml.failing[function] = pynvml.NVML_ERROR_UNKNOWN
            for _ in range(3):
                assert device.read().keys() == ALL.keys() - READINGS[function]
            nvml.failing.clear()
            assert device.read() == ALL
    assert [line["event"] for line in lines] == ["GPU reading is missing"] * 2


@pytest.mark.parametrize("code", GONE)
@pytest.mark.parametrize("function", READINGS)
def test_a_lost_gpu_is_no_missing_reading(nvml: FakeNvml, function: str, code: int) -> None:
    """Off the bus, or of no use before a reset: whichever reading hears it first."""
    device = open_device(UUID, nvml)
    nvml.failing[function] = code
    with pytest.raises(DeviceGone):
        device.read()


@pytest.mark.parametrize(
    ("function", "code", "message"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "Library Not Found"),
        ("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        ("nvmlInit", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "version mismatch"),
        ("nvmlDeviceGetHandleByUUID", pynvml.NVML_ERROR_NO_PERMISSION, "Permissions"),
    ],
)
def test_without_a_usable_nvml_the_reason_is_told(
    nvml: FakeNvml, function: str, code: int, message: str
) -> None:
    """And no session is left open."""
    nvml.failing[function] = code
    with pytest.raises(NvmlUnavailable, match=message):
        open_device(UUID, nvml)
    assert nvml.opened == 0


def test_another_gpu_is_not_taken_instead(nvml: FakeNvml) -> None:
    """One that this container may not see, or a part of one."""
    with pytest.raises(NvmlUnavailable, match="Not Found"):
        open_device(UUID[:-1] + "f", nvml)
    assert nvml.opened == 0


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
@pytest.mark.parametrize("code", GONE)
def test_a_gpu_that_is_lost_from_the_start_is_lost(nvml: FakeNvml, function: str, code: int) -> None:
    """Not merely unwatched."""
    nvml.failing[function] = code
    with pytest.raises(DeviceGone):
        open_device(UUID, nvml)


def test_the_real_library_without_a_driver() -> None:
    """As on any machine without a GPU."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has NVML")
    with pytest.raises(NvmlUnavailable, match="NVML Shared Library Not Found"):
        open_device(UUID)


def test_without_nvidia_ml_py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tickring[server]` alone does not bring it."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlUnavailable, match=r"tickring\[gpu\]"):
        open_device(UUID)


def test_xids_and_double_bit_errors_are_subscribed_where_there_are_any(nvml: FakeNvml) -> None:
    """And nothing else."""
    open_device(UUID, nvml).subscribe()
    assert nvml.subscribed == XID_EVENT | DOUBLE_BIT_EVENT


def test_a_gpu_without_ecc_still_reports_xids(nvml: FakeNvml) -> None:
    """Asked for a type that it does not know, the driver would refuse both."""
    nvml.supported = XID_EVENT
    open_device(UUID, nvml).subscribe()
    assert nvml.subscribed == XID_EVENT


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetSupportedEventTypes", "nvmlEventSetCreate", "nvmlDeviceRegisterEvents"]
)
def test_a_gpu_that_reports_nothing_says_so(nvml: FakeNvml, function: str) -> None:
    """Whatever step finds out; nothing is kept."""
    nvml.failing[function] = pynvml.NVML_ERROR_NOT_SUPPORTED
    device = open_device(UUID, nvml)
    with pytest.raises(NvmlUnavailable, match="Not Supported"):
        device.subscribe()
    assert nvml.sets == 0


def test_a_gpu_that_offers_no_xids_says_so(nvml: FakeNvml) -> None:
    """Though it offers other events."""
    nvml.supported = DOUBLE_BIT_EVENT
    with pytest.raises(NvmlUnavailable, match="Not Supported"):
        open_device(UUID, nvml).subscribe()


def test_waiting_brings_xids_in_order_and_none_for_none(nvml: FakeNvml) -> None:
    """A double-bit error is the Xid that means one."""
    device = open_device(UUID, nvml)
    device.subscribe()
    for event in [(XID_EVENT, 31), (DOUBLE_BIT_EVENT, 0), (XID_EVENT, 79)]:
        nvml.events.put(event)
    assert [device.wait_for_xid(1) for _ in range(4)] == [31, 48, 79, None]


@pytest.mark.parametrize("code", [*GONE, pynvml.NVML_ERROR_UNKNOWN])
def test_a_wait_that_fails_raises(nvml: FakeNvml, code: int) -> None:
    """It is no timeout, which would be waited out for ever."""
    device = open_device(UUID, nvml)
    device.subscribe()
    nvml.events.put(code)
    with pytest.raises(DeviceGone if code in GONE else NvmlUnavailable):
        device.wait_for_xid(1)


def test_the_recovery_action_is_the_drivers(nvml: FakeNvml) -> None:
    """None where it has none to tell."""
    device = open_device(UUID, nvml)
    nvml.recovery_action = 4
    assert device.recovery_action() == 4
    nvml.recovery_action = None
    assert device.recovery_action() is None
    nvml.failing["nvmlDeviceGetFieldValues"] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert device.recovery_action() is None
    nvml.failing["nvmlDeviceGetFieldValues"] = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(DeviceGone):
        device.recovery_action()


def test_closing_a_lost_gpu_does_not_raise(nvml: FakeNvml) -> None:
    """Nothing is left to close it for."""
    device = open_device(UUID, nvml)
    device.subscribe()
    nvml.failing["nvmlEventSetFree"] = pynvml.NVML_ERROR_GPU_IS_LOST
    device.close()
