"""Where time comes from: the kernel's monotonic clock, or a clock that a test or the simulator turns."""

import time
from typing import Protocol

from scheduler import _ring


class Clock(Protocol):
    """Monotonic time in nanoseconds."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""
        ...


class MonotonicClock:
    """CLOCK_MONOTONIC, the same in every process of this machine."""

    now_ns = staticmethod(_ring.now_ns)


class ThreadTimeClock:
    """Time that this thread has computed: what a measurement takes where others want the same core."""

    now_ns = staticmethod(time.thread_time_ns)


class VirtualClock:
    """Stands still until told to move."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """The time it was last set to."""
        return self._now_ns

    def advance(self, by_ns: int) -> None:
        """Moves forward. Raises ValueError for a negative step."""
        if by_ns < 0:
            raise ValueError(f"a clock cannot go back by {-by_ns} ns")
        self._now_ns += by_ns
