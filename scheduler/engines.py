"""Which engine a request goes to: the one that is expected to be done with it first.

Every front end decides for itself, by what the engines publish and what is queued for them at this instant. A
request goes to one engine as a whole, however many rows it has: its rows share a lane, so that they become
visible at once and wait in one order.
"""

from collections.abc import Sequence

from scheduler.forecast import Forecast, Forecasts
from scheduler.partition import Partition

# Predictions are no better than this part of what they predict. Engines within it of the first are as good as
# each other, and take turns: of two devices that are alike, none gets all the work for a microsecond's sake.
EQUAL_PART = 1 / 8


class Engines:
    """The engines as one front end sees them. Belongs to its event loop."""

    def __init__(self, partition: Partition, forecasts: Sequence[Forecasts]) -> None:
        """`forecasts`: by engine index. None of them is ready yet."""
        self._partition = partition
        self._forecasts = forecasts
        self._ready: list[int] = []

    def __len__(self) -> int:
        return len(self._forecasts)

    @property
    def ready(self) -> Sequence[int]:
        """Those that take work, by index; the one used least recently first."""
        return self._ready

    def came(self, engine: int) -> None:
        """It is ready now."""
        assert engine not in self._ready, engine
        self._ready.insert(0, engine)

    def went(self, engine: int) -> None:
        """It is not ready any more, if it ever was."""
        if engine in self._ready:
            self._ready.remove(engine)

    def used(self, engine: int) -> None:
        """Something has been pushed to it."""
        if len(self._ready) > 1:
            self._ready.remove(engine)
            self._ready.append(engine)

    def choose(self, model: int, class_index: int, rows: int, now_ns: int) -> int:
        """The engine for `rows` new items. At least one must be ready."""
        if len(self._ready) == 1:
            return self._ready[0]
        return self.first_done(model, class_index, rows, now_ns)[0]

    def first_done(self, model: int, class_index: int, rows: int, now_ns: int) -> tuple[int, int]:
        """The same engine, and the instant at which they are done at best; 0 while nothing is known."""
        ready = self._ready
        if len(ready) == 1:
            return ready[0], self._done_ns(ready[0], model, class_index, rows, now_ns)
        done_ns = [self._done_ns(engine, model, class_index, rows, now_ns) for engine in ready]
        first_ns = min(done_ns)
        as_good_ns = first_ns + max(0, first_ns - now_ns) * EQUAL_PART
        return next(engine for engine, ns in zip(ready, done_ns, strict=True) if ns <= as_good_ns), first_ns

    def forecast(self, engine: int, model: int, now_ns: int) -> Forecast:
        """What an engine has published of a model."""
        return self._forecasts[engine].of(model, now_ns)

    def item_ns(self, model: int, now_ns: int) -> int:
        """What one more queued item costs while all that are ready share the work; 0: not known yet."""
        costs_ns = [self._forecasts[engine].of(model, now_ns).item_ns for engine in self._ready]
        if len(costs_ns) == 1:
            return costs_ns[0]
        return round(1 / sum(1 / cost_ns for cost_ns in costs_ns)) if all(costs_ns) else 0

    def _done_ns(self, engine: int, model: int, class_index: int, rows: int, now_ns: int) -> int:
        forecasts = self._forecasts[engine]
        forecast = forecasts.of(model, now_ns)
        if forecast.item_ns == 0:
            return 0
        # Whatever waits of this class or a more urgent one is served before. Less urgent items that
        # have aged past this one are left out: too optimistic is corrected at the take, too
        # pessimistic by nobody.
        ahead_ns = sum(self._partition.backlog_ns(engine)[: class_index + 1])
        return max(now_ns, forecasts.free_at_ns()) + forecast.done_ns(ahead_ns, rows)
