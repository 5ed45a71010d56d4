"""Who is let in: the one place that says "full", "too late", "draining" or "not now".

Past this point a request has its slots, and a push cannot fail. Three questions, in this order:

1. Is the service there at all? (`check_serving`)
2. Do the rows fit the queue of their class and the free slots?
3. Can they be done by their deadline, given what waits before them? If not, now is the best time to
   say so: the caller can still do something else, and the engine never sees them.

When it enters the lanes is not asked here but in `scheduler.entrance`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scheduler import _ring
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.errors import DeadlineMissed, Overloaded, Unavailable
from scheduler.latency import STALE_NS
from scheduler.partition import Partition
from scheduler.priority import ClassLimits, PriorityClass

# Bounds of the hint in RetryInfo: neither a busy loop nor a caller that never comes back.
MIN_RETRY_S = 0.005
MAX_RETRY_S = 5.0
# What an engine needs to come back: its start and the warm-up.
ENGINE_RETRY_S = 1.0
DRAIN_RETRY_S = 1.0
# Of the time that a caller gives: for the way back, of which nothing is known here. Without it an overload
# fills the queue with what is done right at its deadline and arrives right after it. It holds at the take
# too: what would be done later gives its place to what is not late yet.
WAY_BACK_PART = 0.05
WAY_BACK_MOST_NS = 20_000_000
# How far one result moves what is expected of the next ones, if it is later than that and if it is not. Late
# ones count ten times as much, so most results are no later than expected; and one bad moment is no rule.
LATER_PART = 0.1
SOONER_PART = 0.01
# Of the time that a caller gives, lateness never takes more: one bad second must not shut a lane.
LATENESS_PART = 0.5


class Admitted(NamedTuple):
    """A request that was let in.

    Attributes:
        engine: that is expected to be done first.
        done_ns: when that is at best; 0 while nothing is known.
        deadline_ns: until when it has to be done: the caller's deadline less the way back to it.
    """

    engine: int
    done_ns: int
    deadline_ns: int


class Admission:
    """Decides about requests of one front end. Belongs to the event loop."""

    def __init__(
        self,
        partition: Partition,
        entrance: Entrance,
        engines: Engines,
        limits: Sequence[ClassLimits],
        frontends: int,
        *,
        early_refusal: bool = True,
        model_limits: Mapping[int, int] | None = None,
    ) -> None:
        """Each front end gets an equal share of the queue limits, at least one item.

        Args:
            early_refusal: ask question 3.
            model_limits: by model index, most items of one class, for those that have a limit of their own.
        """
        self._partition = partition
        self._entrance = entrance
        self._engines = engines
        self._frontends = frontends
        lanes = len(partition.outstanding_by_lane)
        self._late_ns = [0.0] * lanes
        self._delivered_ns = [0] * lanes
        self.engine_lost = False
        self.draining = False
        self.change(limits, early_refusal, model_limits or {})

    def change(
        self, limits: Sequence[ClassLimits], early_refusal: bool, model_limits: Mapping[int, int]
    ) -> None:
        """Decides by these from now on; what has been let in stays. See the constructor."""
        self._early_refusal = early_refusal
        self._class_share = [self._share(limit.queue_limit) for limit in limits]
        self._model_share = {model: self._share(limit) for model, limit in model_limits.items()}

    def check_serving(self) -> None:
        """Raises Unavailable while draining or while no engine is there."""
        if self.draining:
            raise Unavailable("the server is draining", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)
        if self.engine_lost:
            raise Unavailable(
                "the engine is restarting", reason="ENGINE_RESTARTING", retry_after_s=ENGINE_RETRY_S
            )

    def delivered(self, model: int, class_index: int, done_ns: int, now_ns: int) -> None:
        """A result was taken back now; `done_ns` was expected at best when its request was let in.

        Batches that took longer, more urgent requests that came later and a front end that is busy all make
        results late, and are likely to do so to the next ones.
        """
        if done_ns:
            lane = model * _ring.CLASSES + class_index
            more_ns = now_ns - done_ns - self._late_ns[lane]
            self._late_ns[lane] += more_ns * (LATER_PART if more_ns > 0 else SOONER_PART)
            self._delivered_ns[lane] = now_ns

    def check(self, model: int, class_index: int, rows: int, deadline_ns: int, now_ns: int) -> Admitted:
        """Lets `rows` items of a class in, or not.

        Raises:
            Overloaded: they do not fit.
            DeadlineMissed: they cannot be done by their deadline.
        """
        self._check_room(model, class_index, rows, now_ns)
        if deadline_ns < now_ns:
            raise DeadlineMissed("the deadline has passed already", reason="DEADLINE_UNREACHABLE")
        engine, done_ns = self._engines.first_done(model, class_index, rows, now_ns)
        if not self._early_refusal:
            return Admitted(engine, done_ns, deadline_ns)
        given_ns = deadline_ns - now_ns
        by_ns = deadline_ns if deadline_ns == _ring.NO_DEADLINE else deadline_ns - _way_back_ns(given_ns)
        if done_ns == 0:
            return Admitted(engine, done_ns, by_ns)
        if self._entrance.held_rows[class_index]:
            done_ns += self._entrance.wait_ns(class_index, self._engines.item_ns(model, now_ns))
        lane = model * _ring.CLASSES + class_index
        late_ns = 0
        # While all are refused by it nothing is delivered, and nothing would ever correct it.
        if now_ns - self._delivered_ns[lane] < STALE_NS:
            late_ns = max(0, int(min(self._late_ns[lane], given_ns * LATENESS_PART)))
        if done_ns + late_ns > by_ns:
            raise DeadlineMissed(
                f"the deadline is in {given_ns / 1e6:.3g} ms, "
                f"this would be done in {(done_ns + late_ns - now_ns) / 1e6:.3g} ms",
                reason="DEADLINE_UNREACHABLE",
            )
        return Admitted(engine, done_ns, by_ns)

    def _check_room(self, model: int, class_index: int, rows: int, now_ns: int) -> None:
        outstanding = self._partition.outstanding[class_index]
        limit = self._class_share[class_index]
        if outstanding + rows > limit:
            raise self._full(model, class_index, rows, outstanding, limit, "", now_ns)
        if (share := self._model_share.get(model)) is not None:
            queued = self._partition.outstanding_by_lane[model * _ring.CLASSES + class_index]
            if queued + rows > share:
                raise self._full(model, class_index, rows, queued, share, " of this model", now_ns)
        free = self._partition.free_slots
        if rows > free:
            raise Overloaded(
                "slots",
                f"{rows} more items do not fit, {free} slots are free",
                self._retry_after_s(model, rows - free, now_ns),
            )

    def _full(
        self, model: int, class_index: int, rows: int, queued: int, limit: int, whose: str, now_ns: int
    ) -> Overloaded:
        name = PriorityClass(class_index + 1).label
        return Overloaded(
            f"class:{name}",
            f"{rows} more items do not fit the queue of {name}{whose}: {queued} of {limit} are taken",
            self._retry_after_s(model, queued + rows - limit, now_ns),
        )

    def _retry_after_s(self, model: int, items: int, now_ns: int) -> float:
        """Until that many items in the way are done."""
        return min(MAX_RETRY_S, max(MIN_RETRY_S, items * self._engines.item_ns(model, now_ns) / 1e9))

    def _share(self, limit: int) -> int:
        return max(1, math.ceil(limit / self._frontends))


def _way_back_ns(given_ns: int) -> int:
    return min(WAY_BACK_MOST_NS, int(given_ns * WAY_BACK_PART))
