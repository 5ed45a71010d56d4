"""Watches host and device for the engine: under pressure its batches get smaller."""

import threading
from collections.abc import Callable, Mapping, Sequence

import psutil
import structlog

from scheduler.pressure import Pressure, Threshold
from server.gpu import GpuMonitor
from server.settings import Settings
from server.sizing import cores

EVERY_S = 1.0
# A mark without a low one of its own is left this much below where it was reached, so that one close to it
# does not flutter.
LOW_PART = 0.8

log = structlog.get_logger()


class Watch:
    """A thread that calls `shrink(steps)` whenever the pressure has changed.

    It also is the thread that reads `gpu`, started by its owner, and that does `tasks`, once a second each.

    Of a GPU, its memory in use by anybody counts against the same mark as the host's, without `cached_bytes`:
    what this process has allocated and can use again. Its utilization, as NVML defines it, is the part of the
    time in which any kernel ran. A healthy GPU under full load reads 1.0, with large batches as with small
    ones, so a mark of 1 means that it does not count (docs/decisions/0011).
    """

    def __init__(
        self,
        settings: Settings,
        shrink: Callable[[int], None],
        gpu: GpuMonitor | None = None,
        cached_bytes: Callable[[], int] = lambda: 0,
        tasks: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Starts it."""
        self._has_gpu = gpu is not None
        self._pressure = Pressure(_marks(settings, self._has_gpu))
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=_watch,
            args=(self._stopping, self._pressure, shrink, gpu, cached_bytes, tasks),
            name="resources",
            daemon=True,
        )
        self._thread.start()

    def change(self, settings: Settings) -> None:
        """Other marks from now on. From any thread."""
        self._pressure.change(_marks(settings, self._has_gpu))

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._thread.join()


def readings() -> dict[str, float]:
    """Load average of one minute per core, and the part of the memory that is in use."""
    return {
        "host load": psutil.getloadavg()[0] / cores(),
        "host memory": psutil.virtual_memory().percent / 100,
    }


def gpu_readings(found: Mapping[str, float], cached_bytes: int = 0) -> dict[str, float]:
    """What of a GPU's readings makes pressure, as ratios; without what was not found."""
    ratios = {}
    if "gpu_utilization_ratio" in found:
        ratios["GPU utilization"] = found["gpu_utilization_ratio"]
    if found.get("gpu_memory_total_bytes"):
        used = found["gpu_memory_used_bytes"] - cached_bytes
        ratios["GPU memory"] = used / found["gpu_memory_total_bytes"]
    return ratios


def _watch(
    stopping: threading.Event,
    pressure: Pressure,
    shrink: Callable[[int], None],
    gpu: GpuMonitor | None,
    cached_bytes: Callable[[], int],
    tasks: Sequence[Callable[[], None]],
) -> None:
    try:
        while not stopping.wait(EVERY_S):
            found = readings()
            if gpu is not None:
                found = found | gpu_readings(gpu.read(), cached_bytes())
            if pressure.read(found):
                shrink(pressure.steps)
                log.warning("target batch sizes changed", buckets_down=pressure.steps, cause=pressure.cause)
            for task in tasks:
                task()
    except Exception:
        # A bug, and no request's; but nobody would let the batches grow again.
        log.exception("host and device are no longer watched")
        shrink(0)


def _marks(settings: Settings, has_gpu: bool) -> dict[str, Threshold]:
    executor = settings.executor
    marks = {
        "host load": _threshold(executor.host_load_high),
        "host memory": _threshold(executor.memory_utilization_high),
    }
    if has_gpu:
        if executor.gpu_utilization_high < 1:
            marks["GPU utilization"] = Threshold(executor.gpu_utilization_high, executor.gpu_utilization_low)
        marks["GPU memory"] = _threshold(executor.memory_utilization_high)
    return marks


def _threshold(high: float) -> Threshold:
    return Threshold(high, high * LOW_PART)
