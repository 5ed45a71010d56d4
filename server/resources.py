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


def watch(
    settings: Settings,
    shrink: Callable[[int], None],
    gpu: GpuMonitor | None = None,
    cached_bytes: Callable[[], int] = lambda: 0,
    tasks: Sequence[Callable[[], None]] = (),
) -> Callable[[], None]:
    """Starts a thread that calls `shrink(steps)` whenever the pressure has changed. Returns what ends it.

    It also is the thread that reads `gpu`, started by its owner, and that does `tasks`, once a second each.

    Of a GPU, its memory in use by anybody counts against the same mark as the host's, without `cached_bytes`:
    what this process has allocated and can use again. Its utilization, as NVML defines it, is the part of the
    time in which any kernel ran. A healthy GPU under full load reads 1.0, with large batches as with small
    ones, so a mark of 1 means that it does not count (docs/decisions/0011).
    """
    executor = settings.executor
    marks = {
        "host load": _threshold(executor.host_load_high),
        "host memory": _threshold(executor.memory_utilization_high),
    }
    if gpu is not None:
        if executor.gpu_utilization_high < 1:
            marks["GPU utilization"] = Threshold(executor.gpu_utilization_high, executor.gpu_utilization_low)
        marks["GPU memory"] = _threshold(executor.memory_utilization_high)
    stopping = threading.Event()
    thread = threading.Thread(
        target=_watch,
        args=(stopping, Pressure(marks), shrink, gpu, cached_bytes, tasks),
        name="resources",
        daemon=True,
    )
    thread.start()

    def stop() -> None:
        stopping.set()
        thread.join()

    return stop


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
                log.warning("target batch sizes changed", buckets_down=pressure.steps, cause=pressure.cause)
                shrink(pressure.steps)
            for task in tasks:
                task()
    except Exception:
        # A bug, and no request's; but nobody would let the batches grow again.
        log.exception("host and device are no longer watched")
        shrink(0)


def _threshold(high: float) -> Threshold:
    return Threshold(high, high * LOW_PART)
