"""Who is let in: the one place that says "full", "too late", "draining" or "not now".

Past this point a request has its slots, and a push cannot fail. Three questions, in this order:

1. Is the service there at all? (`check_serving`)
2. Do the rows fit the queue of their class and the free slots?
3. Can they be done by their deadline, given what waits before them? If not, now is the best time to
   say so: the caller can still do something else, and the engine never sees them.

When it enters the lanes is not asked here but in `scheduler.entrance`.
"""

import math
from collections.abc import Sequence

from scheduler import _ring
from scheduler.entrance import Entrance
from scheduler.errors import DeadlineMissed, Overloaded, Unavailable
from scheduler.forecast import Forecast, Forecasts
from scheduler.partition import Partition
from scheduler.priority import ClassLimits, PriorityClass

# Bounds of the hint in RetryInfo: neither a busy loop nor a caller that never comes back.
MIN_RETRY_S = 0.005
MAX_RETRY_S = 5.0
# What an engine needs to come back: its start and the warm-up.
ENGINE_RETRY_S = 1.0
DRAIN_RETRY_S = 1.0
# Of the time that a caller gives: for the way back, of which nothing is known here. Without it an overload
# fills the queue with what is done right at its deadline and arrives right after it.
WAY_BACK_PART = 0.05
WAY_BACK_MOST_NS = 20_000_000
# What a late delivery still counts for after one more result: it is forgotten over some hundred of them.
DELIVERY_DECAY = 0.99

ENGINE = 0


class Admission:
    """Decides about requests of one front end. Belongs to the event loop."""

    def __init__(
        self,
        partition: Partition,
        entrance: Entrance,
        forecasts: Forecasts,
        limits: Sequence[ClassLimits],
        frontends: int,
        *,
        early_refusal: bool = True,
        model_limits: Sequence[int | None] = (),
    ) -> None:
        """Each front end gets an equal share of the queue limits, at least one item.

        Args:
            early_refusal: ask question 3.
            model_limits: by model index, most items of one class; None: no limit of its own.
        """
        self._partition = partition
        self._entrance = entrance
        self._forecasts = forecasts
        self._frontends = frontends
        self._early_refusal = early_refusal
        self._model_share = [None if limit is None else self._share(limit) for limit in model_limits]
        self._delivery_ns = 0.0
        self.engine_lost = False
        self.draining = False
        self.change(limits)

    def change(self, limits: Sequence[ClassLimits]) -> None:
        """Uses other limits from now on; what has been let in stays."""
        self._class_share = [self._share(limit.queue_limit) for limit in limits]

    def check_serving(self) -> None:
        """Raises Unavailable while draining or while the engine is away."""
        if self.draining:
            raise Unavailable("the server is draining", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)
        if self.engine_lost:
            raise Unavailable(
                "the engine is restarting", reason="ENGINE_RESTARTING", retry_after_s=ENGINE_RETRY_S
            )

    def delivered(self, lag_ns: int) -> None:
        """A result was taken back this long after it was computed; a busy front end is late with all."""
        self._delivery_ns = max(lag_ns, self._delivery_ns * DELIVERY_DECAY)

    def check(self, model: int, class_index: int, rows: int, deadline_ns: int, now_ns: int) -> None:
        """Lets `rows` items of a class in, or not.

        Raises:
            Overloaded: they do not fit.
            DeadlineMissed: they cannot be done by their deadline.
        """
        forecast = self._forecasts.of(model, now_ns)
        self._check_room(model, class_index, rows, forecast)
        if deadline_ns < now_ns:
            raise DeadlineMissed("the deadline has passed already", reason="DEADLINE_UNREACHABLE")
        if not self._early_refusal or forecast.item_ns == 0:
            return
        # Whatever waits of this class or a more urgent one is served before. Less urgent items that
        # have aged past this one are left out: too optimistic is corrected at the take, too
        # pessimistic by nobody.
        ahead_ns = sum(self._partition.backlog_ns(ENGINE)[: class_index + 1])
        held_ns = self._entrance.wait_ns(class_index, forecast.item_ns)
        free_ns = max(now_ns, self._forecasts.free_at_ns())
        done_ns = free_ns + held_ns + forecast.done_ns(ahead_ns, rows) + int(self._delivery_ns)
        way_back_ns = min(WAY_BACK_MOST_NS, int((deadline_ns - now_ns) * WAY_BACK_PART))
        if done_ns > deadline_ns - way_back_ns:
            raise DeadlineMissed(
                f"the deadline is in {(deadline_ns - now_ns) / 1e6:.3g} ms, "
                f"this would be done in {(done_ns - now_ns) / 1e6:.3g} ms at best",
                reason="DEADLINE_UNREACHABLE",
            )

    def _check_room(self, model: int, class_index: int, rows: int, forecast: Forecast) -> None:
        self._check_queue(
            class_index,
            rows,
            self._partition.outstanding[class_index],
            self._class_share[class_index],
            "",
            forecast,
        )
        if self._model_share and (share := self._model_share[model]) is not None:
            queued = self._partition.outstanding_by_lane[model * _ring.CLASSES + class_index]
            self._check_queue(class_index, rows, queued, share, " of this model", forecast)
        free = self._partition.free_slots
        if rows > free:
            raise Overloaded(
                "slots",
                f"{rows} more items do not fit, {free} slots are free",
                _bounded((rows - free) * forecast.item_ns / 1e9),
            )

    @staticmethod
    def _check_queue(
        class_index: int, rows: int, queued: int, limit: int, whose: str, forecast: Forecast
    ) -> None:
        if queued + rows <= limit:
            return
        name = _name(class_index)
        raise Overloaded(
            f"class:{name}",
            f"{rows} more items do not fit the queue of {name}{whose}: {queued} of {limit} are taken",
            _bounded((queued + rows - limit) * forecast.item_ns / 1e9),
        )

    def _share(self, limit: int) -> int:
        return max(1, math.ceil(limit / self._frontends))


def _name(class_index: int) -> str:
    return PriorityClass(class_index + 1).label


def _bounded(seconds: float) -> float:
    return min(MAX_RETRY_S, max(MIN_RETRY_S, seconds))
