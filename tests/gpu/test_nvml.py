"""NVML of a real GPU."""

import pytest
import torch

from server.gpu import GpuMonitor
from server.nvml import open_device

pytestmark = pytest.mark.gpu


def uuid() -> str:
    return str(torch.cuda.get_device_properties(0).uuid)


def test_torch_and_nvml_mean_the_same_gpu() -> None:
    """Found by what torch calls its UUID: memory that torch takes shows in its readings."""
    device = open_device(uuid())
    try:
        before = device.read()
        taken = torch.empty(1 << 30, dtype=torch.uint8, device="cuda:0")
        after = device.read()
        total = torch.cuda.get_device_properties(0).total_memory
        del taken
    finally:
        device.close()
    assert after["gpu_memory_used_bytes"] - before["gpu_memory_used_bytes"] >= 1 << 29
    # What the driver keeps for itself is not CUDA's to use.
    assert total * 0.95 <= after["gpu_memory_total_bytes"] <= total * 1.1


def test_readings_are_plausible() -> None:
    """Those that this GPU has; all have a memory."""
    device = open_device(uuid())
    try:
        found = device.read()
    finally:
        device.close()
    assert 0 < found["gpu_memory_used_bytes"] <= found["gpu_memory_total_bytes"]
    assert 0 <= found.get("gpu_utilization_ratio", 0) <= 1
    assert 0 < found.get("gpu_temperature_celsius", 40) < 120
    assert found.get("gpu_ecc_uncorrected_total", 0) >= 0
    assert found.get("gpu_slowdown", 0) in (0, 1)


def test_a_healthy_gpu_is_watched_and_let_go() -> None:
    """Its driver reports Xids; none comes, and the thread that waits for them ends."""
    told: list[str] = []
    published: list[dict[str, float]] = []
    monitor = GpuMonitor(uuid(), on_lost=told.append, on_drain=told.append, on_readings=published.append)
    monitor.start()
    device = open_device(uuid())
    try:
        device.subscribe()
        assert device.wait_for_xid(1) is None
        device.recovery_action()
    finally:
        device.close()
    assert monitor.read() == published[0]
    monitor.stop()
    assert told == []
    assert monitor.read() == {}
