"""Readings as a service would make them, out of plain numbers."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

from server.telemetry.totals import BATCH_SIZE_BOUNDS, DURATION_BOUNDS_S, Histogram, Totals

REAL_TIME, MARKET, NORMAL = "real_time_trading", "market_data_update", "batch_processing"
BACKGROUND = "background_tasks"
MODEL = "pair"


def histogram(values: Mapping[float, int], bounds: tuple[float, ...] = DURATION_BOUNDS_S) -> Histogram:
    """Of these values, each so many times."""
    counts = [0] * (len(bounds) + 1)
    for value, count in values.items():
        counts[bisect_left(bounds, value)] += count
    return Histogram(bounds, tuple(counts), sum(value * count for value, count in values.items()))


def sizes(values: Mapping[float, int]) -> Histogram:
    """Batches of these sizes, each so many times."""
    return histogram(values, BATCH_SIZE_BOUNDS)


def nothing(at_s: float = 0.0) -> Totals:
    """A service that has just started."""
    return Totals(at_s, up={"frontend-0": 1, "engine-0": 1}, restarts={"frontend-0": 0, "engine-0": 0})


def answered(
    priority: str = REAL_TIME,
    count: int = 100,
    *,
    at_s: float = 300.0,
    request_s: float = 0.01,
    wait_s: float = 0.001,
    compute_s: float = 0.005,
    batch: int = 4,
) -> Totals:
    """So many requests of one class, all alike, in batches of one size."""
    batches = max(1, count // batch)
    return replace(
        nothing(at_s),
        requests={(MODEL, priority, "OK"): count},
        request_s={(MODEL, priority): histogram({request_s: count})},
        queue_wait_s={(MODEL, priority): histogram({wait_s: count})},
        compute_s={(MODEL, batch): histogram({compute_s: batches})},
        batch_size={MODEL: sizes({batch: batches})},
        target={MODEL: 64},
    )


def at_second(second: float) -> Totals:
    """A service under a steady load of two classes since second 0: 120 and 60 requests a second."""
    urgent, normal = int(120 * second), int(60 * second)
    batches = (urgent + normal) // 6
    return replace(
        nothing(second),
        requests={(MODEL, REAL_TIME, "OK"): urgent, (MODEL, NORMAL, "OK"): normal},
        request_s={
            (MODEL, REAL_TIME): histogram({0.0042: urgent}),
            (MODEL, NORMAL): histogram({0.012: normal // 2, 0.024: normal - normal // 2}),
        },
        queue_wait_s={
            (MODEL, REAL_TIME): histogram({0.000_8: urgent - urgent // 50, 0.002_5: urgent // 50}),
            (MODEL, NORMAL): histogram({0.006: normal // 2, 0.018: normal - normal // 2}),
        },
        compute_s={(MODEL, 8): histogram({0.0031: batches})},
        batch_size={MODEL: sizes({6: batches})},
        depth={(MODEL, REAL_TIME): 1, (MODEL, NORMAL): 3},
        target={MODEL: 32},
        readings={
            ("tickring_cpu_utilization_ratio", ""): 0.62,
            ("tickring_memory_utilization_ratio", ""): 0.41,
            ("tickring_gpu_utilization_ratio", "0"): 0.55,
        },
    )
