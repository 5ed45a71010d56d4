"""Watches the host for the engine: under pressure its batches get smaller."""

import threading
import time
from collections.abc import Callable

import psutil
import structlog

from scheduler.pressure import Pressure, Threshold
from server.settings import Settings
from server.sizing import cores

EVERY_S = 1.0
# A mark is left this much below where it was reached, so that one close to it does not flutter.
LOW_PART = 0.8

log = structlog.get_logger()


def watch(settings: Settings, shrink: Callable[[int], None]) -> None:
    """Starts a thread that calls `shrink(steps)` whenever the pressure has changed."""
    executor = settings.executor
    pressure = Pressure(
        {
            "host load": _threshold(executor.host_load_high),
            "host memory": _threshold(executor.memory_utilization_high),
        }
    )
    threading.Thread(target=_watch, args=(pressure, shrink), name="resources", daemon=True).start()


def readings() -> dict[str, float]:
    """Load average of one minute per core, and the part of the memory that is in use."""
    return {
        "host load": psutil.getloadavg()[0] / cores(),
        "host memory": psutil.virtual_memory().percent / 100,
    }


def _watch(pressure: Pressure, shrink: Callable[[int], None]) -> None:
    while True:
        time.sleep(EVERY_S)
        if pressure.read(readings()):
            log.warning("target batch sizes changed", buckets_down=pressure.steps, cause=pressure.cause)
            shrink(pressure.steps)


def _threshold(high: float) -> Threshold:
    return Threshold(high, high * LOW_PART)
