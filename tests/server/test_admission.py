"""Who is let in: what fits, and what can be done by its deadline."""

import math

import pytest

from scheduler import _ring
from scheduler.errors import DeadlineMissed, Overloaded, Unavailable
from scheduler.forecast import REFRESH_NS
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server import admission
from server.admission import MAX_RETRY_S, MIN_RETRY_S
from tests.server.door import (
    HIGH,
    LOW,
    MARKET,
    MS,
    NOW,
    Door,
    MakeFrontEnd,
    forecast,
    limits_of,
    queue,
    reserve,
)
from tests.server.world import FrontEnd, request

pytestmark = pytest.mark.usefixtures("no_way_back")


# -- is the service there -----------------------------------------------------------------------


def test_serving_is_let_in(front_end: FrontEnd) -> None:
    """Nothing is raised."""
    Door(front_end).admission.check_serving()


def test_draining_comes_before_a_lost_engine(front_end: FrontEnd) -> None:
    """Both at once: coming back here is pointless, and the reason says so."""
    door = Door(front_end).admission
    door.engine_lost = True
    with pytest.raises(Unavailable, match=r"^the engine is restarting$") as refused:
        door.check_serving()
    assert (refused.value.reason, refused.value.retry_after_s) == ("ENGINE_RESTARTING", 1.0)
    door.draining = True
    with pytest.raises(Unavailable, match=r"^the server is draining$") as refused:
        door.check_serving()
    assert (refused.value.reason, refused.value.retry_after_s) == ("DRAINING", 1.0)


# -- do the rows fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "frontends", "share"), [(6, 1, 6), (6, 2, 3), (7, 2, 4), (1, 4, 1), (6, 7, 1)]
)
def test_each_front_end_has_its_share_of_a_queue(
    front_end: FrontEnd, limit: int, frontends: int, share: int
) -> None:
    """Equal parts, rounded up, so at least one: that many fit, one more does not."""
    door = Door(front_end, limit, frontends=frontends)
    door.check(share)
    refused = door.refusal(share + 1)
    assert refused.subject == "class:real_time_trading"
    assert (
        str(refused)
        == f"{share + 1} more items do not fit the queue of real_time_trading: 0 of {share} are taken"
    )


def test_what_is_outstanding_counts_in_its_class_alone(front_end: FrontEnd) -> None:
    """Until it has ended."""
    door = Door(front_end, 4)
    front_end.submit(request(3, priority=LOW.value))
    assert "3 of 4 are taken" in str(door.refusal(2, LOW))
    door.check(1, LOW)
    door.check(4, HIGH)
    front_end.complete(Outcome.RESULT)
    door.check(4, LOW)


def test_what_is_held_at_the_entrance_counts_as_well(front_end: FrontEnd) -> None:
    """It has its place in the queue."""
    front_end.hold_all_but_two()
    door = Door(front_end, 5)
    for _ in range(4):
        front_end.submit(request(priority=LOW.value))
    assert front_end.entrance.held_rows[LOW.index] == 2
    assert "4 of 5 are taken" in str(door.refusal(2, LOW))


def test_model_may_have_a_limit_of_its_own(make_front_end: MakeFrontEnd) -> None:
    """In each class, shared by the front ends likewise; other models have the class's alone."""
    front_end = make_front_end(model_count=3)
    door = Door(front_end, 12, frontends=2, model_limits={0: 5, 2: 1000})
    reserve(front_end, 2, LOW, model=0)
    refused = door.refusal(2, LOW, model=0)
    assert refused.subject == "class:background_tasks"
    assert str(refused) == (
        "2 more items do not fit the queue of background_tasks of this model: 2 of 3 are taken"
    )
    door.check(1, LOW, model=0)
    door.check(3, HIGH, model=0)
    for model in (1, 2):
        door.check(4, LOW, model=model)
        assert "of this model" not in str(door.refusal(5, LOW, model=model))


def test_slots_are_of_all_classes(front_end: FrontEnd) -> None:
    """Sixteen: eight taken by one class, and nine wanted by another."""
    door = Door(front_end)
    front_end.submit(request(8, priority=LOW.value))
    door.check(8)
    refused = door.refusal(9)
    assert (refused.subject, str(refused)) == ("slots", "9 more items do not fit, 8 slots are free")


@pytest.mark.parametrize(
    ("cost_ms", "over", "hint_s"),
    [(0, 3, MIN_RETRY_S), (1, 1, MIN_RETRY_S), (10, 3, 0.03), (10, 100, 1.0), (100, 100, MAX_RETRY_S)],
)
def test_the_hint_is_how_long_the_items_in_the_way_take(
    front_end: FrontEnd, cost_ms: int, over: int, hint_s: float
) -> None:
    """Within its bounds, for a full queue, for a model's own limit and for full slots."""
    front_end.engine.publish_forecast(0, 1, cost_ms * MS, [1], [0], [0], [0])
    for door, fits in (
        (Door(front_end, 4), 4),
        (Door(front_end, model_limits={0: 5}), 5),
        (Door(front_end), 16),
    ):
        assert math.isclose(door.refusal(fits + over).retry_after_s, hint_s)


def test_other_limits_count_from_the_next_request_on(make_front_end: MakeFrontEnd) -> None:
    """What has been let in stays; a model's own limit is not a class's, and may come and go as well."""
    front_end = make_front_end(model_count=2)
    door = Door(front_end, 4, frontends=2, model_limits={1: 6})
    reserve(front_end, 2, LOW)
    assert "2 of 2 are taken" in str(door.refusal(1, LOW))
    door.admission.change(limits_of(4, 4, 4, 4, 20), True, {1: 6})
    door.check(8, LOW)
    assert "2 of 10 are taken" in str(door.refusal(9, LOW))
    assert "0 of 2 are taken" in str(door.refusal(3, HIGH))
    assert "of this model: 0 of 3 are taken" in str(door.refusal(4, LOW, model=1))
    door.admission.change(limits_of(4, 4, 4, 4, 20), True, {0: 8})
    door.check(8, LOW, model=1)
    assert "of this model: 2 of 4 are taken" in str(door.refusal(3, LOW))
    door.admission.change(limits_of(1), True, {})
    assert "2 of 1 are taken" in str(door.refusal(1, LOW))


def test_whether_the_future_counts_can_change(front_end: FrontEnd) -> None:
    """From the next request on."""
    forecast(front_end)
    door = Door(front_end)
    door.admission.change(limits_of(1000), False, {})
    door.check(in_ms=1)
    door.admission.change(limits_of(1000), True, {})
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=1)


# -- can they be done by their deadline ---------------------------------------------------------


@pytest.mark.parametrize("early_refusal", [True, False])
def test_deadline_that_has_passed_is_refused_in_any_case(front_end: FrontEnd, early_refusal: bool) -> None:
    """Even while nothing is known of the model."""
    door = Door(front_end, early_refusal=early_refusal)
    door.check(in_ms=0)
    with pytest.raises(DeadlineMissed, match=r"^the deadline has passed already$") as refused:
        door.check(in_ms=-0.001)
    assert refused.value.reason == "DEADLINE_UNREACHABLE"


@pytest.mark.parametrize(
    ("rows", "queued", "free_in_ms", "done_ms"),
    [
        (1, {}, 0, 2),  # alone
        (4, {}, 0, 5),
        (5, {}, 0, 8),
        (8, {}, 0, 8),
        (1, {}, 3, 5),  # behind what runs
        (1, {}, -3, 2),  # which is late: it ends now at best
        (3, {HIGH: 1}, 0, 5),  # in one batch with what is queued
        (1, {HIGH: 8}, 0, 8 + 2),  # behind a full batch
        (6, {HIGH: 4}, 0, 8 + 5),  # the last rows in a batch of their own
        (1, {MARKET: 8}, 0, 2),  # less urgent work stands back
        (1, {LOW: 8}, 0, 2),
        (2, {HIGH: 8}, 4, 4 + 8 + 5),
    ],
)
def test_what_cannot_be_done_in_time_is_refused(
    front_end: FrontEnd, rows: int, queued: dict[PriorityClass, int], free_in_ms: float, done_ms: float
) -> None:
    """After what runs and what is queued of this class or a more urgent one: just so is in time."""
    forecast(front_end)
    for cls, count in queued.items():
        queue(front_end, count, cls)
    front_end.engine.publish_free_at(NOW + round(free_in_ms * MS) if free_in_ms else 0)
    door = Door(front_end)
    door.check(rows, in_ms=done_ms)
    with pytest.raises(DeadlineMissed) as refused:
        door.check(rows, in_ms=done_ms - 0.1)
    assert refused.value.reason == "DEADLINE_UNREACHABLE"
    assert str(refused.value) == (
        f"the deadline is in {done_ms - 0.1:.3g} ms, this would be done in {done_ms:.3g} ms"
    )
    Door(front_end, early_refusal=False).check(rows, in_ms=0.001)


def test_more_urgent_work_comes_first_whatever_its_model(make_front_end: MakeFrontEnd) -> None:
    """Its own model says what it costs, in time, and not in items of this one."""
    front_end = make_front_end(model_count=2)
    forecast(front_end, 0)
    front_end.engine.publish_forecast(1, 1, 8 * MS, [1], [0], [0], [8 * MS])
    queue(front_end, 2, HIGH, model=1)
    door = Door(front_end)
    for cls in (HIGH, MARKET, LOW):
        door.check(cls=cls, in_ms=18)
        with pytest.raises(DeadlineMissed):
            door.check(cls=cls, in_ms=17.9)


def test_what_is_held_of_its_class_comes_first_as_well(front_end: FrontEnd) -> None:
    """Two seconds each: two in the lanes, two held."""
    front_end.hold_all_but_two()
    for _ in range(4):
        front_end.submit(request(priority=LOW.value))
    door = Door(front_end)
    door.check(cls=LOW, in_ms=8_001)
    with pytest.raises(DeadlineMissed):
        door.check(cls=LOW, in_ms=7_999)
    door.check(cls=PriorityClass.HISTORICAL_ANALYSIS, in_ms=1)


def test_what_is_held_is_predicted_by_the_pace_at_which_it_gets_in(front_end: FrontEnd) -> None:
    """Two in the lanes, 100 ms each, and two held. None of those gets in for a while: a second each, then."""
    front_end.hold_all_but_two(item_ms=100)
    for _ in range(4):
        front_end.submit(request(priority=LOW.value))
    door = Door(front_end)
    for held_ms in (200, 2000):
        door.check(cls=LOW, in_ms=200 + held_ms + 1)
        with pytest.raises(DeadlineMissed):
            door.check(cls=LOW, in_ms=200 + held_ms - 1)
        front_end.entrance.let_in(_ring.now_ns() + 200 * MS)
    assert sum(front_end.entrance.held_rows) == 2


def test_nobody_is_refused_before_anything_is_known(front_end: FrontEnd) -> None:
    """The forecast is read again after a while, and then it counts."""
    door = Door(front_end)
    door.check(in_ms=0.1)
    forecast(front_end)
    door.check(in_ms=0.1, now_ns=NOW + REFRESH_NS - 1)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=0.1, now_ns=NOW + REFRESH_NS)


def test_the_engine_that_is_done_first_decides(make_front_end: MakeFrontEnd) -> None:
    """Only when no engine can do it in time is a request refused; and it is told where it should go."""
    front_end = make_front_end(engine_count=2)
    for port, batch_ms in zip(front_end.ports, (5, 3), strict=True):
        port.publish_forecast(0, 1, MS, [1], [0], [0], [batch_ms * MS])
    admission = Door(front_end).admission
    assert admission.check(0, HIGH.index, 1, NOW + 3 * MS, NOW).engine == 1
    with pytest.raises(DeadlineMissed, match=r"this would be done in 3 ms$"):
        admission.check(0, HIGH.index, 1, NOW + 3 * MS - 1, NOW)
    front_end.engines.went(1)
    assert admission.check(0, HIGH.index, 1, NOW + 5 * MS, NOW).engine == 0
    with pytest.raises(DeadlineMissed, match=r"this would be done in 5 ms$"):
        admission.check(0, HIGH.index, 1, NOW + 5 * MS - 1, NOW)


def test_whose_turn_it_is_refuses_nobody(make_front_end: MakeFrontEnd) -> None:
    """The engine used least recently may be a little late, as far as can be known; the other would not be."""
    front_end = make_front_end(engine_count=2)
    for port, batch_us in zip(front_end.ports, (1050, 1000), strict=True):
        port.publish_forecast(0, 1, MS, [1], [0], [0], [batch_us * 1000])
    admission = Door(front_end).admission
    front_end.engines.used(1, 0)
    assert admission.check(0, HIGH.index, 1, NOW + MS, NOW).engine == 0


def test_a_request_enters_the_lanes_of_the_engine_it_was_admitted_for(make_front_end: MakeFrontEnd) -> None:
    """From the desk to the push."""
    front_end = make_front_end(engine_count=2)
    for port, batch_ms in zip(front_end.ports, (5, 3), strict=True):
        port.publish_forecast(0, 1, MS, [1], [0], [0], [batch_ms * MS])
    front_end.submit(request(priority=HIGH.value))
    assert [sum(front_end.partition.depths(engine)) for engine in range(2)] == [0, 1]


def test_hints_reckon_with_all_engines(make_front_end: MakeFrontEnd) -> None:
    """Two that take 20 ms for an item clear three of them in 30."""
    front_end = make_front_end(engine_count=2)
    for port in front_end.ports:
        port.publish_forecast(0, 1, 20 * MS, [1], [0], [0], [0])
    assert math.isclose(Door(front_end, 4).refusal(4 + 3).retry_after_s, 0.03)


def test_full_comes_before_late(front_end: FrontEnd) -> None:
    """A caller that is told to come back later must not be told that it is too late."""
    forecast(front_end)
    with pytest.raises(Overloaded):
        Door(front_end, 1).check(2, in_ms=-1)


@pytest.mark.parametrize(
    ("part", "in_ms", "passes"), [(0.05, 2.2, True), (0.05, 2.1, False), (0.5, 4.1, True)]
)
def test_some_of_the_time_is_for_the_way_back(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch, part: float, in_ms: float, passes: bool
) -> None:
    """What would be done in 2 ms has to have a twentieth more than that, or what is set."""
    monkeypatch.setattr(admission, "WAY_BACK_PART", part)
    forecast(front_end)
    door = Door(front_end)
    if passes:
        door.check(in_ms=in_ms)
    else:
        with pytest.raises(DeadlineMissed):
            door.check(in_ms=in_ms)


def test_the_way_back_never_takes_more_than_its_most(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an hour would be too much."""
    monkeypatch.setattr(admission, "WAY_BACK_PART", 0.9995)
    forecast(front_end)
    door = Door(front_end)
    door.check(in_ms=2 + admission.WAY_BACK_MOST_NS / MS)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=1.9 + admission.WAY_BACK_MOST_NS / MS)


@pytest.mark.parametrize(
    ("in_ms", "early_refusal", "left_ms"), [(100, True, 95), (10_000, True, 9_980), (100, False, 100)]
)
def test_engines_have_the_time_but_for_the_way_back(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch, in_ms: int, early_refusal: bool, left_ms: int
) -> None:
    """What is done later than that would arrive too late, so it is not computed; by the clock alone it is."""
    monkeypatch.setattr(admission, "WAY_BACK_PART", 0.05)
    forecast(front_end)
    admitted = Door(front_end, early_refusal=early_refusal).check(in_ms=in_ms)
    assert admitted.deadline_ns == NOW + left_ms * MS


def test_no_deadline_stays_none(front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there a way back of no time, before anything is known of the engine and after."""
    monkeypatch.setattr(admission, "WAY_BACK_PART", 0.05)
    assert Door(front_end).check().deadline_ns == _ring.NO_DEADLINE
    forecast(front_end)
    assert Door(front_end).check().deadline_ns == _ring.NO_DEADLINE
