"""Who is let in."""

import math

import pytest

from scheduler.errors import Overloaded, Unavailable
from scheduler.partition import Outcome
from scheduler.priority import ClassLimits, PriorityClass
from server.admission import MAX_RETRY_S, MIN_RETRY_S, Admission
from tests.server.world import FrontEnd, request

HIGH = PriorityClass.REAL_TIME_TRADING
LOW = PriorityClass.BACKGROUND_TASKS


def admission(front_end: FrontEnd, *queue_limits: int, frontends: int = 1) -> Admission:
    """With these queue limits, the last one for the remaining classes."""
    limits = [*queue_limits, *[queue_limits[-1]] * 5][:5]
    return Admission(
        front_end.partition, [ClassLimits(0, 0, limit, 1_000_000) for limit in limits], frontends
    )


def test_serving_is_let_in(front_end: FrontEnd) -> None:
    """Nothing is raised."""
    admission(front_end, 4).check_serving()


def test_draining_comes_before_a_lost_engine(front_end: FrontEnd) -> None:
    """Both at once: coming back here is pointless, and the reason says so."""
    door = admission(front_end, 4)
    door.engine_lost = True
    with pytest.raises(Unavailable, match=r"^the engine is restarting$") as refused:
        door.check_serving()
    assert (refused.value.reason, refused.value.retry_after_s) == ("ENGINE_RESTARTING", 1.0)
    door.draining = True
    with pytest.raises(Unavailable, match=r"^the server is draining$") as refused:
        door.check_serving()
    assert (refused.value.reason, refused.value.retry_after_s) == ("DRAINING", 1.0)


@pytest.mark.parametrize(
    ("limit", "frontends", "share"), [(6, 1, 6), (6, 2, 3), (7, 2, 4), (1, 4, 1), (6, 7, 1)]
)
def test_each_front_end_has_its_share_of_a_queue(
    front_end: FrontEnd, limit: int, frontends: int, share: int
) -> None:
    """Equal parts, rounded up, so at least one: that many fit, one more does not."""
    door = admission(front_end, limit, frontends=frontends)
    door.check_room(share, HIGH.index)
    with pytest.raises(Overloaded) as refused:
        door.check_room(share + 1, HIGH.index)
    assert refused.value.subject == "class:real_time_trading"
    assert (
        str(refused.value)
        == f"{share + 1} more items do not fit the queue of real_time_trading: 0 of {share} are taken"
    )


def test_what_is_outstanding_counts_in_its_class_alone(front_end: FrontEnd) -> None:
    """Until it has ended."""
    door = admission(front_end, 4)
    front_end.submit(request(3, priority=LOW.value))
    with pytest.raises(Overloaded, match=r"2 more items .* background_tasks: 3 of 4 are taken"):
        door.check_room(2, LOW.index)
    door.check_room(1, LOW.index)
    door.check_room(4, HIGH.index)
    front_end.complete(Outcome.RESULT)
    door.check_room(4, LOW.index)


def test_slots_are_of_all_classes(front_end: FrontEnd) -> None:
    """Sixteen: eight taken by one class, and nine wanted by another."""
    door = admission(front_end, 1000)
    front_end.submit(request(8, priority=LOW.value))
    door.check_room(8, HIGH.index)
    with pytest.raises(Overloaded, match=r"^9 more items do not fit, 8 slots are free$") as refused:
        door.check_room(9, HIGH.index)
    assert refused.value.subject == "slots"


@pytest.mark.parametrize(
    ("cost_ms", "over", "hint_s"),
    [(0, 3, MIN_RETRY_S), (1, 1, MIN_RETRY_S), (10, 3, 0.03), (10, 100, 1.0), (100, 100, MAX_RETRY_S)],
)
def test_the_hint_is_how_long_the_items_in_the_way_take(
    front_end: FrontEnd, cost_ms: float, over: int, hint_s: float
) -> None:
    """Within its bounds, for a full queue and for full slots."""
    front_end.partition.item_cost_ns = cost_ms * 1e6
    with pytest.raises(Overloaded) as refused:
        admission(front_end, 4).check_room(4 + over, HIGH.index)
    assert math.isclose(refused.value.retry_after_s, hint_s)
    with pytest.raises(Overloaded) as refused:
        admission(front_end, 1000).check_room(16 + over, HIGH.index)
    assert math.isclose(refused.value.retry_after_s, hint_s)
