"""Who is let in: the one place that says "full", "draining" or "not now".

Past this point a request has its slots, and a push cannot fail.
"""

import math
from collections.abc import Sequence

from scheduler.errors import Overloaded, Unavailable
from scheduler.partition import Partition
from scheduler.priority import ClassLimits, PriorityClass

# Bounds of the hint in RetryInfo: neither a busy loop nor a caller that never comes back.
MIN_RETRY_S = 0.005
MAX_RETRY_S = 5.0
# What an engine needs to come back: its start and the warm-up.
ENGINE_RETRY_S = 1.0
DRAIN_RETRY_S = 1.0


class Admission:
    """Decides about requests of one front end. Belongs to the event loop."""

    def __init__(self, partition: Partition, limits: Sequence[ClassLimits], frontends: int) -> None:
        """Each front end gets an equal share of the queue limits, at least one item."""
        self._partition = partition
        self._share = [max(1, math.ceil(limit.queue_limit / frontends)) for limit in limits]
        self.engine_lost = False
        self.draining = False

    def check_serving(self) -> None:
        """Raises Unavailable while draining or while the engine is away."""
        if self.draining:
            raise Unavailable("the server is draining", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)
        if self.engine_lost:
            raise Unavailable(
                "the engine is restarting", reason="ENGINE_RESTARTING", retry_after_s=ENGINE_RETRY_S
            )

    def check_room(self, rows: int, class_index: int) -> None:
        """Raises Overloaded when the class's queue or the slots cannot take `rows` more items."""
        queued = self._partition.outstanding[class_index]
        limit = self._share[class_index]
        name = PriorityClass(class_index + 1).name.lower()
        if queued + rows > limit:
            raise Overloaded(
                f"class:{name}",
                f"{rows} more items do not fit the queue of {name}: {queued} of {limit} are taken",
                self._retry_after_s(queued + rows - limit),
            )
        free = self._partition.free_slots
        if rows > free:
            raise Overloaded(
                "slots",
                f"{rows} more items do not fit, {free} slots are free",
                self._retry_after_s(rows - free),
            )

    def _retry_after_s(self, items: int) -> float:
        """About how long until `items` of those queued have been computed."""
        return min(MAX_RETRY_S, max(MIN_RETRY_S, items * self._partition.item_cost_ns / 1e9))
