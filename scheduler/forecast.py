"""What an engine predicts, as a front end reads it from the arena.

The engine publishes every few milliseconds; a front end keeps what it has read for about as long, so that a
request pays for a look at a clock and no more.
"""

from dataclasses import dataclass

from scheduler.arena import Arena

REFRESH_NS = 10_000_000


@dataclass(frozen=True)
class Forecast:
    """For one model.

    Attributes:
        target: items of a full batch.
        item_ns: engine time that one more queued item costs; 0: nothing is known yet.
        least_ns: by bucket, ascending: the least that a batch may take, nanoseconds.
    """

    target: int
    item_ns: int
    least_ns: tuple[tuple[int, int], ...]

    def batch_ns(self, items: int) -> int:
        """The least that one batch of this many items may take."""
        for bucket, ns in self.least_ns:
            if bucket >= items:
                return ns
        return self.least_ns[-1][1]

    def done_ns(self, ahead_ns: int, rows: int) -> int:
        """How long until `rows` new items are done, with `ahead_ns` of engine time queued before them.

        They share their last batch with what is queued right before them, so it is the number of batches
        that counts: full ones, and the one with the last row.
        """
        items = ahead_ns // self.item_ns + rows
        full, last = divmod(items - 1, self.target)
        return full * self.target * self.item_ns + self.batch_ns(last + 1)


_UNKNOWN = Forecast(1, 0, ((1, 0),))


class Forecasts:
    """The forecasts of one engine. Belongs to one event loop."""

    def __init__(self, arena: Arena, engine: int) -> None:
        self._native = arena.native
        self._engine = engine
        self._read_ns = [0] * arena.native.models
        self._read = [_UNKNOWN] * arena.native.models

    def of(self, model: int, now_ns: int) -> Forecast:
        """What was last published for a model."""
        if now_ns - self._read_ns[model] >= REFRESH_NS:
            self._read_ns[model] = now_ns
            self._read[model] = self._look(model)
        return self._read[model]

    def free_at_ns(self) -> int:
        """When an instance is expected to be free; 0: one is."""
        return self._native.free_at_ns(self._engine)

    def _look(self, model: int) -> Forecast:
        published = self._native.forecast(self._engine, model)
        least = tuple((bucket, floor) for bucket, _median, _high, floor in published["buckets"])
        if not least or not published["item_ns"]:
            return _UNKNOWN
        return Forecast(published["target"], published["item_ns"], least)
