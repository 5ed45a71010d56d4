"""How long a call takes, for gates."""

import statistics
import time
from collections.abc import Callable


def median_us(work: Callable[[], None], calls: int) -> float:
    """Of one call, in microseconds."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6
