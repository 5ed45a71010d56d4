"""An admission that is asked at one instant, and the queues that it sees."""

from collections.abc import Callable, Mapping

import pytest

from scheduler import _ring
from scheduler.errors import Overloaded
from scheduler.partition import Submission
from scheduler.priority import ClassLimits, PriorityClass
from server.admission import Admission, Admitted
from tests.server.world import FrontEnd

MS = 1_000_000
NOW = 1_000_000 * MS
HIGH = PriorityClass.REAL_TIME_TRADING
MARKET = PriorityClass.MARKET_DATA_UPDATE
LOW = PriorityClass.BACKGROUND_TASKS
MakeFrontEnd = Callable[..., FrontEnd]


def limits_of(*queue_limits: int) -> list[ClassLimits]:
    """By class, the last one for the remaining classes."""
    return [ClassLimits(0, 0, limit, 1) for limit in [*queue_limits, *[queue_limits[-1]] * 5][:5]]


class Door:
    """An admission, asked at one instant."""

    def __init__(
        self,
        front_end: FrontEnd,
        *queue_limits: int,
        frontends: int = 1,
        early_refusal: bool = True,
        model_limits: Mapping[int, int] | None = None,
    ) -> None:
        self.admission = Admission(
            front_end.partition,
            front_end.entrance,
            front_end.engines,
            limits_of(*queue_limits or (1000,)),
            frontends,
            early_refusal=early_refusal,
            model_limits=model_limits,
        )

    def check(
        self,
        rows: int = 1,
        cls: PriorityClass = HIGH,
        *,
        model: int = 0,
        in_ms: float | None = None,
        now_ns: int = NOW,
    ) -> Admitted:
        """With a deadline in so many milliseconds, or none."""
        deadline_ns = _ring.NO_DEADLINE if in_ms is None else now_ns + round(in_ms * MS)
        return self.admission.check(model, cls.index, rows, deadline_ns, now_ns)

    def refusal(self, rows: int = 1, cls: PriorityClass = HIGH, *, model: int = 0) -> Overloaded:
        """What these rows are told."""
        with pytest.raises(Overloaded) as refused:
            self.check(rows, cls, model=model)
        return refused.value


def reserve(front_end: FrontEnd, rows: int, cls: PriorityClass, model: int = 0) -> Submission:
    """As if another request had been let in."""
    return front_end.partition.reserve(rows, model, cls.index, front_end.partition.release)


def queue(front_end: FrontEnd, rows: int, cls: PriorityClass, model: int = 0) -> None:
    """The same, in the lanes already."""
    front_end.partition.push(
        reserve(front_end, rows, cls, model),
        engine=0,
        key=NOW,
        enqueued_ns=NOW,
        deadline_ns=_ring.NO_DEADLINE,
        exclusive=False,
    )


def forecast(front_end: FrontEnd, model: int = 0) -> None:
    """Batches of 1, 4 and 8 take 2, 5 and 8 ms at least; a full one has 8 items, so each costs 1 ms."""
    front_end.engine.publish_forecast(model, 8, MS, [1, 4, 8], [0] * 3, [0] * 3, [2 * MS, 5 * MS, 8 * MS])
