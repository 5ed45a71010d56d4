"""What the engine reads of host and device, and how its batches follow."""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import pynvml
import pytest
from structlog.testing import capture_logs

from scheduler.clock import VirtualClock
from server import resources
from server.configuration import load_settings
from server.gpu import GpuMonitor
from server.idle import IdleCleanup
from server.resources import Watch
from tests.server.fake_nvml import UUID, FakeNvml

CALM = {"host load": 0.1, "host memory": 0.1}
MARKS = {
    "host_load_high": 2.0,
    "memory_utilization_high": 0.8,
    "gpu_utilization_high": 0.9,
    "gpu_utilization_low": 0.6,
}


class Host:
    """What the host reads, and a watch over it whose seconds pass as fast as they can."""

    def __init__(self) -> None:
        self.readings = CALM
        self.told = queue.Queue[int]()
        self.stops: list[Callable[[], None]] = []

    def watch(self, marks: Mapping[str, float] = MARKS, **options: Any) -> None:
        settings = load_settings({"executor": marks}, environ={})
        self.stops.append(Watch(settings, self.told.put, **options).stop)

    def hears(self, *steps: int) -> None:
        assert [self.told.get(timeout=30) for _ in steps] == list(steps)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    monkeypatch.setattr(resources, "EVERY_S", 0.001)
    monkeypatch.setattr(resources, "readings", lambda: host.readings)
    yield host
    for stop in host.stops:
        stop()


class Gpu:
    """A monitor over a fake GPU that nothing strains; `seconds` counts how often it was read."""

    def __init__(self) -> None:
        self.nvml = FakeNvml()
        self.seconds = threading.Semaphore(0)
        self.lost: list[str] = []
        self.monitor = GpuMonitor(
            UUID,
            on_lost=self.lost.append,
            on_drain=self.lost.append,
            on_readings=lambda _: self.seconds.release(),
            nvml=self.nvml,
        )
        self.nvml.supported = 0  # no thread of its own here
        self.monitor.start()

    def pass_seconds(self, count: int) -> None:
        """So many from now on."""
        while self.seconds.acquire(blocking=False):
            pass
        for _ in range(count):
            assert self.seconds.acquire(timeout=30)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def test_readings_are_ratios_of_this_machine() -> None:
    """Load per core that this process may use, and memory in use."""
    found = resources.readings()
    assert found.keys() == {"host load", "host memory"}
    assert 0 <= found["host load"] < 1000
    assert 0 < found["host memory"] <= 1


def test_load_is_per_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one minute; a container with two of eight cores is full at a load of two."""
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 50.0, 50.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert resources.readings()["host load"] == 1.5


@pytest.mark.parametrize(
    "reading", [{"host load": 2.0, "host memory": 0.1}, {"host load": 0.1, "host memory": 0.8}]
)
def test_pressure_of_the_host_shrinks_the_batches(host: Host, reading: dict[str, float]) -> None:
    """From the marks in the settings on; each change is told once; back again when it has passed."""
    host.readings = reading
    host.watch()
    host.hears(1, 2, 3)
    host.readings = CALM
    host.hears(2, 1, 0)


@pytest.mark.parametrize(("name", "value"), [("utilization", 90), ("used", 8), ("total", 1)])
def test_pressure_of_the_gpu_shrinks_the_batches(host: Host, gpu: Gpu, name: str, value: int) -> None:
    """Its utilization by marks of its own, its memory by that of memory."""
    gpu.nvml.total, gpu.nvml.used = 10, 2
    if name == "total":  # full, whatever its size
        gpu.nvml.used = 1
    setattr(gpu.nvml, name, value)
    host.watch(gpu=gpu.monitor)
    host.hears(1, 2, 3)


def test_utilization_has_a_low_mark_of_its_own(host: Host, gpu: Gpu) -> None:
    """Where it was set, not a part of the high one (which would be 0.72)."""
    gpu.nvml.utilization = 90
    host.watch(gpu=gpu.monitor)
    host.hears(1, 2, 3)
    gpu.nvml.utilization = 61
    gpu.pass_seconds(20)
    assert host.told.empty()
    gpu.nvml.utilization = 60
    host.hears(2, 1, 0)


def test_utilization_does_not_count_unless_a_mark_is_set(host: Host, gpu: Gpu) -> None:
    """A healthy GPU under full load reads 100 %."""
    gpu.nvml.utilization = 100
    host.watch({}, gpu=gpu.monitor)
    gpu.pass_seconds(20)
    assert host.told.empty()


def test_memory_that_is_only_cached_does_not_count(host: Host, gpu: Gpu) -> None:
    gpu.nvml.total, gpu.nvml.used = 100, 95
    host.watch(gpu=gpu.monitor, cached_bytes=lambda: 20)
    gpu.pass_seconds(20)
    assert host.told.empty()


def test_a_gpu_strains_nothing_below_its_marks(host: Host, gpu: Gpu) -> None:
    """Utilization of 89 %, memory of 79 %."""
    gpu.nvml.utilization, gpu.nvml.used, gpu.nvml.total = 89, 79, 100
    host.watch(gpu=gpu.monitor)
    gpu.pass_seconds(20)
    assert host.told.empty()


@pytest.mark.parametrize("function", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"])
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_UNKNOWN])
def test_a_missing_reading_shrinks_nothing(host: Host, gpu: Gpu, function: str, code: int) -> None:
    """Though it would be high."""
    if function == "nvmlDeviceGetUtilizationRates":
        gpu.nvml.utilization = 100
    else:
        gpu.nvml.used = gpu.nvml.total
    gpu.nvml.failing[function] = code
    host.watch(gpu=gpu.monitor)
    gpu.pass_seconds(20)
    assert host.told.empty()


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_a_reading_that_is_lost_gives_the_batches_back(host: Host, gpu: Gpu, code: int) -> None:
    """One of them, or with the GPU all of them."""
    gpu.nvml.utilization = 100
    host.watch(gpu=gpu.monitor)
    host.hears(1, 2, 3)
    gpu.nvml.failing["nvmlDeviceGetUtilizationRates"] = code
    host.hears(2, 1, 0)
    assert gpu.lost == (["NVML: GPU is lost"] if code == pynvml.NVML_ERROR_GPU_IS_LOST else [])


def test_a_gpu_without_memory_of_its_own_makes_no_pressure() -> None:
    """Where NVML counts none; the ratio would not exist."""
    assert resources.gpu_readings({"gpu_memory_used_bytes": 0, "gpu_memory_total_bytes": 0}) == {}


def test_the_same_thread_looks_after_an_idle_engine(host: Host) -> None:
    """Each second."""
    clock = VirtualClock()
    released = threading.Event()

    def batches() -> int:
        clock.advance(1_000_000_000)
        return 7

    host.watch(tasks=[IdleCleanup(batches, released.set, clock).tick])
    assert released.wait(30)


def test_what_stops_it_ends_its_thread(host: Host) -> None:
    """And waits for that."""
    host.watch()
    assert "resources" in {thread.name for thread in threading.enumerate()}
    host.stops[0]()
    assert "resources" not in {thread.name for thread in threading.enumerate()}


def test_a_watch_that_fails_leaves_no_small_batches_behind(host: Host) -> None:
    """Of a release that raises, say; it is logged with the trace."""
    host.readings = {"host load": 9.0}
    failing = threading.Event()

    def batches() -> int:
        if failing.is_set():
            raise RuntimeError("out of order")
        return 0

    with capture_logs() as lines:
        host.watch(tasks=[IdleCleanup(batches, lambda: None, VirtualClock()).tick])
        host.hears(1, 2, 3)
        failing.set()
        host.hears(0)
        host.stops[0]()
    assert lines[-1]["event"] == "host and device are no longer watched"
    assert lines[-1]["exc_info"]
