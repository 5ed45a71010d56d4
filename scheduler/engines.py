"""Which engine a request goes to: the one that is expected to be done with it first.

Every front end decides for itself, by what the engines publish and what is queued for them at this instant. A
request goes to one engine as a whole, however many rows it has: its rows share a lane, so that they become
visible at once and wait in one order.

An engine serves the models it was started with. When others are to be served, new engines take over: from
then on the old ones get nothing new. What is still to be pushed for a model that they alone serve goes to
them.
"""

from collections.abc import Collection, Mapping, Sequence

from scheduler.forecast import Forecast, Forecasts
from scheduler.partition import Partition
from scheduler.priority import CLASS_COUNT

# Predictions are no better than this part of what they predict. Engines within it of the first are as good as
# each other, and take turns: of two devices that are alike, none gets all the work for a microsecond's sake.
EQUAL_PART = 1 / 8


class Engines:
    """The engines as one front end sees them. Belongs to its event loop."""

    def __init__(self, partition: Partition, forecasts: Sequence[Forecasts]) -> None:
        """`forecasts`: by engine index. None of them is ready yet, and each serves every model."""
        self._partition = partition
        self._forecasts = forecasts
        self._ready: list[int] = []
        self._retiring: frozenset[int] = frozenset()
        every = range(len(partition.outstanding_by_lane) // CLASS_COUNT)
        self._models: dict[int, Collection[int]] = dict.fromkeys(range(len(forecasts)), every)
        # By model, those that take work for it; the one used least recently first.
        self._for_model: list[list[int]] = [[] for _ in every]

    def __len__(self) -> int:
        return len(self._forecasts)

    @property
    def any_ready(self) -> bool:
        """Whether one takes work that is not about to retire."""
        return any(engine not in self._retiring for engine in self._ready)

    def ready_for(self, model: int) -> Sequence[int]:
        """Those that take work for a model, by index; the one used least recently first."""
        return self._for_model[model]

    def came(self, engine: int) -> None:
        """It is ready now."""
        assert engine not in self._ready, engine
        self._ready.insert(0, engine)
        self._assign()

    def went(self, engine: int) -> None:
        """It is not ready any more, if it ever was."""
        if engine in self._ready:
            self._ready.remove(engine)
            self._assign()

    def change(self, models: Mapping[int, Collection[int]], ready: Collection[int]) -> Sequence[int]:
        """Other engines serve from now on; those that did until now retire.

        Args:
            models: by engine that serves from now on, what it does.
            ready: those of them that are.

        Returns:
            Those that retire: they are ready, and get what they alone serve until `went` is called for them.
        """
        self._retiring = frozenset(engine for engine in self._ready if engine not in models)
        self._models = {engine: self._models[engine] for engine in self._retiring} | dict(models)
        self._ready = sorted(self._retiring) + [engine for engine in models if engine in ready]
        self._assign()
        return sorted(self._retiring)

    def used(self, engine: int, model: int) -> None:
        """Something has been pushed to it."""
        engines = self._for_model[model]
        if len(engines) > 1:
            engines.remove(engine)
            engines.append(engine)

    def first_done(self, model: int, class_index: int, rows: int, now_ns: int) -> tuple[int, int]:
        """The engine for `rows` new items, and when they are done at best; 0 while nothing is known.

        At least one must be ready.
        """
        ready = self._for_model[model]
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
        costs_ns = [self._forecasts[engine].of(model, now_ns).item_ns for engine in self._for_model[model]]
        if len(costs_ns) == 1:
            return costs_ns[0]
        return round(1 / sum(1 / cost_ns for cost_ns in costs_ns)) if all(costs_ns) else 0

    def _assign(self) -> None:
        for model, before in enumerate(self._for_model):
            serving = [engine for engine in self._ready if model in self._models[engine]]
            staying = [engine for engine in serving if engine not in self._retiring]
            # In their turn, and who is new first.
            self._for_model[model] = sorted(
                staying or serving, key=lambda engine: before.index(engine) if engine in before else -1
            )

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
