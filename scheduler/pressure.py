"""When host or device is so loaded that batches should be smaller, with hysteresis."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a reading, a ratio, calls for smaller batches, and where it allows larger ones again."""

    high: float
    low: float


class Pressure:
    """Turns readings of host and device into how many buckets to step down.

    One step for `PATIENCE` readings in a row in which something is at or over its high mark, one back for
    as many in which everything is at or under its low mark; between the marks nothing changes. What is not
    read counts as low: it never takes a step down, and does not hold back those taken while it was read.
    """

    PATIENCE = 3
    MAX_STEPS = 3

    def __init__(self, thresholds: Mapping[str, Threshold]) -> None:
        self._thresholds = thresholds
        self._over = self._under = 0
        self.steps = 0
        self.cause = ""

    def change(self, thresholds: Mapping[str, Threshold]) -> None:
        """Other marks from the next reading on; steps taken by the old ones go as they came."""
        self._thresholds = thresholds

    def read(self, readings: Mapping[str, float]) -> bool:
        """Takes one reading of each; True when `steps` has changed. `cause` names what last was too high."""
        high = [name for name, limit in self._thresholds.items() if readings.get(name, 0.0) >= limit.high]
        # At its high mark nothing is low, wherever the low one has been set.
        low = not high and all(
            readings.get(name, 0.0) <= limit.low for name, limit in self._thresholds.items()
        )
        self._over = self._over + 1 if high else 0
        self._under = self._under + 1 if low else 0
        if high:
            self.cause = ", ".join(high)
        if self._over >= self.PATIENCE and self.steps < self.MAX_STEPS:
            self.steps += 1
        elif self._under >= self.PATIENCE and self.steps > 0:
            self.steps -= 1
        else:
            return False
        self._over = self._under = 0
        return True
