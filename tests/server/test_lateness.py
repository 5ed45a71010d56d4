"""How much later than expected results are taken back, and what that costs who comes next."""

import math
import time

import numpy as np
import pytest

from scheduler import _ring
from scheduler.errors import DeadlineMissed
from scheduler.latency import STALE_NS
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.admission import LATENESS_PART, SOONER_PART
from tests.server.door import HIGH, LOW, MS, NOW, Door, MakeFrontEnd, forecast
from tests.server.world import FrontEnd, request
from tickring.v1 import types_pb2

pytestmark = pytest.mark.usefixtures("no_way_back")


def late(door: Door, cls: PriorityClass = HIGH, ms: float = 1) -> None:
    """Results that come so much later than expected, until that is expected."""
    for _ in range(200):
        door.admission.delivered(0, cls.index, NOW - round(ms * MS), NOW)


def test_lateness_counts_until_it_is_forgotten(front_end: FrontEnd) -> None:
    """Results that come 1 ms later than expected, and then prompt ones; the queue is empty."""
    forecast(front_end)
    door = Door(front_end)
    late(door)
    door.check(in_ms=3.01)
    with pytest.raises(DeadlineMissed, match=r"^the deadline is in 2.9 ms, this would be done in 3 ms$"):
        door.check(in_ms=2.9)
    for _ in range(round(math.log(0.1) / math.log(1 - SOONER_PART))):
        door.admission.delivered(0, HIGH.index, NOW, NOW)
    door.check(in_ms=2.11)


def test_one_late_result_is_no_rule(front_end: FrontEnd) -> None:
    """A tenth of it is expected of the next one; prompt ones are not expected before their time."""
    forecast(front_end)
    door = Door(front_end)
    door.admission.delivered(0, HIGH.index, NOW - 5 * MS, NOW)
    door.check(in_ms=2.6)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=2.4)
    late(door, ms=-5)
    door.check(in_ms=2)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=1.9)


def test_most_results_are_no_later_than_expected(front_end: FrontEnd) -> None:
    """Of lateness that is spread evenly over 0 to 1 ms, three quarters are below what is expected."""
    forecast(front_end)
    door = Door(front_end)
    for late_us in np.random.default_rng(0).uniform(0, 1000, 5000):
        door.admission.delivered(0, HIGH.index, NOW - int(late_us * 1000), NOW)
    door.check(in_ms=2.85)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=2.65)


def test_lateness_is_of_a_lane(make_front_end: MakeFrontEnd) -> None:
    """Urgent requests are not held up by what keeps background waiting, nor one model by another."""
    front_end = make_front_end(model_count=2)
    forecast(front_end)
    forecast(front_end, model=1)
    door = Door(front_end)
    late(door, LOW)
    door.check(in_ms=2)
    door.check(cls=LOW, model=1, in_ms=2)
    with pytest.raises(DeadlineMissed):
        door.check(cls=LOW, in_ms=2.9)


def test_who_finds_the_queue_empty_is_let_in(front_end: FrontEnd) -> None:
    """Lateness takes half of the time at most: a bad second cannot lock a class out."""
    forecast(front_end)
    door = Door(front_end)
    late(door, ms=3_000)
    door.check(in_ms=2 / (1 - LATENESS_PART))
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=1.9 / (1 - LATENESS_PART))


def test_lateness_is_not_held_against_anybody_for_long(front_end: FrontEnd) -> None:
    """Who has hardly more time than a batch takes would be refused for ever: nothing came to tell better."""
    forecast(front_end)
    door = Door(front_end)
    late(door)
    with pytest.raises(DeadlineMissed):
        door.check(in_ms=2.5, now_ns=NOW + STALE_NS - 1)
    door.check(in_ms=2.5, now_ns=NOW + STALE_NS)


def test_a_result_that_nothing_was_expected_of_teaches_nothing(front_end: FrontEnd) -> None:
    """Before the first forecast."""
    forecast(front_end)
    door = Door(front_end)
    door.admission.delivered(0, HIGH.index, 0, NOW)
    door.check(in_ms=2)


def test_a_late_result_holds_back_the_next_requests(front_end: FrontEnd) -> None:
    """From the door to the answer: it was expected in 2 ms, and took more than 20; a tenth counts."""
    forecast(front_end)
    check = front_end.desk.admission.check
    check(0, HIGH.index, 1, NOW + 3 * MS, NOW)
    front_end.submit(request(priority=types_pb2.PRIORITY_REAL_TIME_TRADING))
    time.sleep(0.022)
    front_end.complete(Outcome.RESULT)
    now_ns = _ring.now_ns()
    check(0, HIGH.index, 1, now_ns + 5 * MS, now_ns)
    with pytest.raises(DeadlineMissed):
        check(0, HIGH.index, 1, now_ns + 3 * MS, now_ns)
