"""Readings of the host, of real processes and of GPUs."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.books import EngineState
from server.lineup import Lineup
from server.nvml import Device
from server.telemetry import monitors, names
from server.telemetry.monitors import GpuReadings, HostMonitor, Odometer

NOTHING = Lineup((), (), None)
CPU_S, RESIDENT = names.PROCESS_CPU.name, names.PROCESS_RESIDENT.name
# Uses 200 ms of CPU, says so, and waits.
BUSY = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ninput()"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[str]]:
    """A process that has used 200 ms of CPU and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    yield process
    process.kill()
    process.communicate()


def test_odometer_goes_on_where_its_source_starts_anew() -> None:
    """By key; what was read last is what it stands at."""
    odometer = Odometer()
    assert [odometer.read(("a",), value) for value in (1, 3, 2, 2, 5, 0)] == [1, 3, 5, 5, 8, 8]
    assert odometer.read(("b",), 7) == 7
    assert dict(odometer.items()) == {("a",): 8, ("b",): 7}


def test_host_is_read_as_ratios() -> None:
    """Of the CPU time since the look before, and of the memory."""
    monitor = HostMonitor(dict)
    assert monitor.readings() == {}
    monitor.look(0.01)
    found = monitor.readings()
    assert found.keys() == {(names.CPU_UTILIZATION.name, ""), (names.MEMORY_UTILIZATION.name, "")}
    assert all(0 <= value <= 1 for value in found.values())
    assert found[names.MEMORY_UTILIZATION.name, ""] > 0


def test_processes_are_read_by_name(busy: subprocess.Popen[str]) -> None:
    """Each its own CPU time and memory."""
    monitor = HostMonitor(lambda: {"engine-0": busy.pid, "supervisor": os.getpid()})
    monitor.look(0.01)
    found = monitor.readings()
    own = psutil.Process()
    # The kernel counts by ticks.
    assert 0.15 <= found[CPU_S, "engine-0"] < 60
    assert 0 < found[CPU_S, "supervisor"] <= sum(own.cpu_times()[:2])
    assert 1 << 20 < found[RESIDENT, "engine-0"] < found[RESIDENT, "supervisor"] < 1 << 40


def test_cpu_time_goes_on_with_the_next_process(busy: subprocess.Popen[str]) -> None:
    """Of one that has ended what was last read stays, and it has no memory any more."""
    pids = {"engine-0": busy.pid}
    monitor = HostMonitor(lambda: pids)
    monitor.look(0.01)
    before = monitor.readings()[CPU_S, "engine-0"]
    busy.kill()
    busy.wait()
    monitor.look(0.01)
    found = monitor.readings()
    assert found[CPU_S, "engine-0"] == before
    assert (RESIDENT, "engine-0") not in found
    pids.clear()
    monitor.look(0.01)
    assert monitor.readings()[CPU_S, "engine-0"] == before
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as successor:
        pids["engine-0"] = successor.pid
        monitor.look(0.01)
        found = monitor.readings()
    assert before <= found[CPU_S, "engine-0"] < before + 60
    assert (RESIDENT, "engine-0") in found


def test_thread_reads_again_and_again_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a monitor that was never started can be stopped."""
    looked = threading.Semaphore(0)

    def pids() -> dict[str, int]:
        looked.release()
        return {}

    monkeypatch.setattr(monitors, "EVERY_S", 0.001)
    monitor = HostMonitor(pids)
    monitor.start()
    for _ in range(3):
        assert looked.acquire(timeout=30)
    monitor.stop()
    assert monitor.readings()
    assert [each for each in threading.enumerate() if each.name == "host readings"] == []
    HostMonitor(pids).stop()


def engine(device: str, **readings: float) -> EngineState:
    return EngineState(device, True, readings, NOTHING)


def test_gpus_are_read_by_the_number_of_their_device() -> None:
    """A CPU has no readings."""
    found = GpuReadings().read(
        {
            0: engine("cuda:0", gpu_utilization_ratio=0.5),
            1: engine("cuda:1", gpu_utilization_ratio=0.25),
            2: engine("cpu"),
        }
    )
    assert found == {(names.GPU_UTILIZATION.name, "0"): 0.5, (names.GPU_UTILIZATION.name, "1"): 0.25}


def test_errors_of_a_gpu_add_up_over_its_engines() -> None:
    """Each process counts from 0, in either chair; what one that is gone has counted stays."""
    readings = GpuReadings()
    xids = (names.GPU_XID.name, "0")
    assert readings.read({0: engine("cuda:0", gpu_xid_total=2)})[xids] == 2
    assert readings.read({0: engine("cuda:0")})[xids] == 2
    assert readings.read({0: engine("cuda:0", gpu_xid_total=1)})[xids] == 3
    assert readings.read({1: engine("cuda:0", gpu_xid_total=0)})[xids] == 3
    assert readings.read({1: engine("cuda:0", gpu_xid_total=4)})[xids] == 7


def test_every_reading_of_a_gpu_is_a_metric() -> None:
    """What NVML is asked for, and what the monitor counts."""
    source = (Path(monitors.__file__).parents[1] / "nvml.py").read_text()
    known = {metric.name for metric in names.READINGS if metric.labels == ("gpu",)}
    told = {f"tickring_{word}" for word in source.replace('"', " ").split() if word.startswith("gpu_")}
    assert Device.read.__doc__
    assert told | {names.GPU_XID.name} == known
