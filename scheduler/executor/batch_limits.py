"""How large batches may be for now, where the device once ran out of memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# After this long without another failure the next larger size is tried again; twice as long after each
# failure of such a try, since what else lives on the device seems to stay.
RECOVER_NS = 30_000_000_000
MOST_RECOVER_NS = 600_000_000_000


@dataclass(slots=True)
class _Limit:
    at: int  # position in the model's buckets
    since_ns: int
    patience_ns: int


class BatchLimits:
    """For the models of one engine; called by every instance thread and by whoever watches the clock."""

    def __init__(self, on_change: Callable[[int, int | None], None]) -> None:
        """`on_change(model, largest)`: told of every change; None: no limit any more."""
        self._on_change = on_change
        self._lock = threading.Lock()
        self._limits: dict[int, _Limit] = {}
        self._buckets: dict[int, Sequence[int]] = {}

    def exhausted(self, model: int, bucket: int, buckets: Sequence[int], now_ns: int) -> None:
        """A batch of this size did not fit. From now on only smaller ones, at least the smallest.

        Args:
            buckets: the sizes of the model, ascending.
        """
        with self._lock:
            at = max(0, list(buckets).index(bucket) - 1)
            known = self._limits.get(model)
            patience_ns = RECOVER_NS
            if known is not None:
                if known.at < at:
                    return  # of a batch that had been formed before an earlier failure
                patience_ns = min(MOST_RECOVER_NS, 2 * known.patience_ns)
            self._buckets[model] = buckets
            self._limits[model] = _Limit(at, now_ns, patience_ns)
            self._on_change(model, buckets[at])

    def recover(self, now_ns: int) -> None:
        """Allows the next larger size where the last failure is long ago. Called every second or so."""
        with self._lock:
            for model, limit in list(self._limits.items()):
                if now_ns - limit.since_ns < limit.patience_ns:
                    continue
                buckets = self._buckets[model]
                if limit.at + 1 < len(buckets):
                    limit.at += 1
                    limit.since_ns = now_ns
                    self._on_change(model, buckets[limit.at])
                else:
                    del self._limits[model]
                    self._on_change(model, None)
