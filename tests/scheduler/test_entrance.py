"""Bulk enters the lanes only as far as it is served within its slack; what does not fit is held."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from scheduler import _ring
from scheduler.entrance import FULLEST, Entrance
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Submission
from scheduler.priority import DEFAULT_LIMITS, ClassLimits
from tests.scheduler.world import EAGER, MS, World

MakeDoor = Callable[..., "Door"]
QUANTUM_NS = 10 * MS  # so the classes 3, 4 and 5 are bulk, with slacks of 50, 500 and 2000 ms


@dataclass
class Door:
    """An entrance, the lanes behind it, and how everything ended that has entered them or not."""

    world: World
    ended: list[tuple[str, Outcome]] = field(default_factory=list)
    alarms: int = 0

    def __post_init__(self) -> None:
        self.entrance = Entrance(
            self.world.partition,
            Forecasts(self.world.arena, 0),
            DEFAULT_LIMITS,
            models=len(self.world.plans),
            bulk_quantum_ns=QUANTUM_NS,
            on_held=self._alarm,
        )

    def _alarm(self) -> None:
        self.alarms += 1

    def enter(
        self, name: str, number: int, *, rows: int = 1, model: int = 0, timeout_ms: float | None = None
    ) -> Submission:
        """Of the class with this number."""
        now_ns = self.world.clock.now_ns()

        def ended(submission: Submission) -> None:
            self.ended.append((name, submission.outcome))
            self.world.partition.release(submission)

        submission = self.world.partition.reserve(rows, model, number - 1, ended)
        self.entrance.enter(
            submission,
            now_ns=now_ns,
            arrived_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE if timeout_ms is None else now_ns + round(timeout_ms * MS),
            exclusive=False,
        )
        return submission

    def fill(self, number: int, count: int) -> list[str]:
        """So many single items of a class, one after the other."""
        names = [f"{number}-{index}" for index in range(count)]
        for name in names:
            self.enter(name, number)
        return names

    def let_in(self, after_ms: float = 0) -> None:
        self.world.clock.advance(round(after_ms * MS))
        self.entrance.let_in(self.world.clock.now_ns())

    def take(self, count: int) -> int:
        """Out of the lanes and answered, the smallest keys first."""
        slots = np.empty(count, np.uint32)
        now_ns = self.world.clock.now_ns()
        taken = self.world.port.take(0, now_ns, 0, slots)
        outcomes = np.full(taken, Outcome.RESULT, np.uint8)
        self.world.port.complete(slots[:taken], outcomes, now_ns, now_ns, now_ns, 1, 8)
        self.world.partition.drain()
        self.world.partition.check_integrity()
        return taken

    @property
    def queued(self) -> list[int]:
        """In the lanes, by class."""
        return self.world.partition.depths(0)

    @property
    def held(self) -> list[int]:
        """At the door, by class."""
        return self.entrance.held_rows


@pytest.fixture
def make_door(make_world: Callable[..., World]) -> MakeDoor:
    def make(item_ms: float, target: int = 1, *, slots: int = 64, models: int = 1) -> Door:
        """An item costs so much, and a full batch has so many."""
        world = make_world(slots=slots, plans=[EAGER] * models)
        if item_ms:
            for model in range(models):
                world.port.publish_forecast(model, target, round(item_ms * MS), [8], [1], [1], [1])
        return Door(world)

    return make


def test_urgent_items_enter_at_once(make_door: MakeDoor) -> None:
    """However many there are, however long they take, and whatever is held."""
    door = make_door(item_ms=1000)
    door.fill(5, 3)
    assert (door.held, door.alarms) == ([0, 0, 0, 0, 2], 2)
    door.fill(1, 20)
    door.fill(2, 20)
    assert door.queued == [20, 20, 0, 0, 1]
    assert door.held == [0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("number", "item_ms", "enter"),
    [
        (3, 10, 4),  # 10 / 50 each, up to 0.8
        (4, 50, 4),  # 50 / 500 each, up to 0.4
        (5, 50, 8),  # 50 / 2000 each, up to 0.2
        (3, 1000, 1),  # one may always wait
        (5, 0, 50),  # nothing is known yet: nothing is held
    ],
)
def test_bulk_enters_as_far_as_it_is_served_within_its_slack(
    make_door: MakeDoor, number: int, item_ms: float, enter: int
) -> None:
    """Half as much the less urgent it is."""
    assert FULLEST == 0.8
    door = make_door(item_ms)
    door.fill(number, 50)
    assert door.queued[number - 1] == enter
    assert (door.held[number - 1], door.alarms) == (50 - enter, 50 - enter)
    assert door.entrance.holds == (enter < 50)
    door.world.partition.check_integrity()


def test_what_is_queued_of_every_bulk_class_counts(make_door: MakeDoor) -> None:
    """30 items of 10 ms are 0.15 of class 5's slack, and leave room for three of class 3 instead of four."""
    door = make_door(item_ms=10)
    door.fill(5, 30)
    door.fill(3, 4)
    assert door.queued == [0, 0, 3, 0, 30]


@pytest.mark.parametrize(("urgent_permille", "enter"), [(0, 4), (240, 3), (500, 2), (760, 1), (1000, 1)])
def test_bulk_fits_into_what_urgent_work_leaves(
    make_door: MakeDoor, urgent_permille: int, enter: int
) -> None:
    """An engine that is busy with urgent work for half of its time takes twice as long for the rest."""
    door = make_door(item_ms=10)
    door.world.port.publish_urgent_share(urgent_permille)
    door.fill(3, 6)
    assert door.queued[2] == enter


def test_what_urgent_classes_have_queued_does_not_count(make_door: MakeDoor) -> None:
    """Bulk that is held would not help them: they are in front of it."""
    door = make_door(item_ms=10)
    door.fill(1, 30)
    door.fill(3, 5)
    assert door.queued == [30, 0, 4, 0, 0]


def test_each_class_may_have_a_full_batch_waiting(make_door: MakeDoor) -> None:
    """However full it is: no class is shut out for as long as another one keeps coming."""
    door = make_door(item_ms=100, target=4)
    for number in (3, 4, 5):
        door.fill(number, 6)
    assert door.queued == [0, 0, 4, 4, 4]
    assert door.held == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("rows", [8, 9, 50])
def test_request_of_more_than_a_batch_enters_an_empty_class(make_door: MakeDoor, rows: int) -> None:
    """It could never enter otherwise."""
    door = make_door(item_ms=1000, target=8)
    door.enter("big", 3, rows=rows)
    door.enter("next", 3)
    assert (door.queued[2], door.held[2]) == (rows, 1)


def test_what_is_held_enters_as_the_lanes_empty(make_door: MakeDoor) -> None:
    """In the order of arrival, as much as fits."""
    door = make_door(item_ms=10)
    names = door.fill(3, 9)
    seen = []
    while door.take(2):
        door.let_in()
        seen.append((door.queued[2], door.held[2]))
    assert seen == [(4, 3), (4, 1), (3, 0), (1, 0), (0, 0)]
    assert door.ended == [(name, Outcome.RESULT) for name in names]
    assert not door.entrance.holds


def test_nobody_overtakes_in_its_own_class(make_door: MakeDoor) -> None:
    """A request of one row would fit and stays behind the big one that came before it."""
    door = make_door(item_ms=10, slots=16)
    door.enter("first", 3, rows=3)
    door.enter("big", 3, rows=3)
    door.enter("small", 3)
    assert (door.queued[2], door.held[2]) == (3, 4)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (3, 4)
    door.take(2)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (4, 1)


def test_more_urgent_bulk_enters_first(make_door: MakeDoor) -> None:
    """Though it came later; the room that is left is the others'."""
    door = make_door(item_ms=20)
    door.fill(5, 30)
    assert door.queued == [0, 0, 0, 0, 20]
    door.fill(3, 2)  # two would be 0.2 + 0.8
    assert door.held == [0, 0, 1, 0, 10]
    assert door.take(11) == 11  # the one of class 3 and ten others
    door.let_in()
    assert door.queued == [0, 0, 1, 0, 10]
    assert door.held == [0, 0, 0, 0, 10]  # 0.4 of class 3 leave no room for class 5


def test_key_starts_to_age_on_entering_and_the_wait_on_arrival(make_door: MakeDoor) -> None:
    """What was held is measured as waiting, and does not arrive in the lane ahead of what is there."""
    door = make_door(item_ms=1000)
    start_ns = door.world.clock.now_ns()
    door.fill(3, 2)
    door.world.clock.advance(200 * MS)
    door.take(1)
    door.let_in()
    ((_, class_index, depth, key, enqueued_ns, _),) = door.world.port.look()
    assert (class_index, depth, enqueued_ns) == (2, 1, start_ns)
    assert key == start_ns + 200 * MS + 50 * MS


def test_held_item_expires_at_its_deadline(make_door: MakeDoor) -> None:
    """It never enters the lanes; the next one does."""
    door = make_door(item_ms=1000)
    door.enter("in front", 3)
    door.enter("late", 3, rows=2, timeout_ms=5)
    door.enter("next", 3, timeout_ms=50)
    door.let_in(after_ms=5)
    assert door.ended == []
    door.let_in(after_ms=1)
    assert door.ended == [("late", Outcome.EXPIRED)]
    assert (door.queued[2], door.held[2]) == (1, 1)
    door.take(1)
    door.let_in()
    assert door.take(8) == 1
    assert [name for name, _ in door.ended] == ["late", "in front", "next"]


def test_caller_that_leaves_a_held_item_hears_at_once(make_door: MakeDoor) -> None:
    """And its slots are free; what has entered is left to the engine to skip."""
    door = make_door(item_ms=1000)
    entered, held = door.enter("entered", 3), door.enter("held", 3, rows=2)
    door.entrance.cancel(held)
    assert (door.ended, door.held[2], door.world.partition.free_slots) == (
        [("held", Outcome.CANCELLED)],
        0,
        63,
    )
    door.entrance.cancel(entered)
    assert len(door.ended) == 1
    assert door.take(1) == 0
    assert door.ended[1:] == [("entered", Outcome.CANCELLED)]


def test_lost_engine_ends_what_is_held_as_well(make_door: MakeDoor) -> None:
    """Once each: the partition ends what has entered."""
    door = make_door(item_ms=1000)
    for number in (3, 4, 5):
        door.fill(number, 3)
    door.entrance.lose_engine()
    door.world.partition.lose_engine()
    assert len(door.ended) == len({name for name, _ in door.ended}) == 9
    assert {outcome for _, outcome in door.ended} == {Outcome.LOST}
    assert (door.entrance.holds, door.world.partition.free_slots) == (False, 64)
    door.world.partition.check_integrity()


def changed(number: int, slack_ms: float) -> list[ClassLimits]:
    limits = list(DEFAULT_LIMITS)
    limits[number - 1] = replace(limits[number - 1], slack_ns=round(slack_ms * MS))
    return limits


@pytest.mark.parametrize(
    ("slack_ms", "queued", "held"),
    [
        (100, 8, 4),  # twice the slack, twice as much within it
        (10, 12, 0),  # urgent by now: nothing of it is held
        (20, 4, 8),  # half of it fits; what has entered stays
    ],
)
def test_other_slack_counts_from_the_next_time_on(
    make_door: MakeDoor, slack_ms: float, queued: int, held: int
) -> None:
    """For what is held too."""
    door = make_door(item_ms=10)
    door.fill(3, 12)
    door.entrance.change(changed(3, slack_ms))
    assert (door.queued[2], door.held[2]) == (4, 8)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (queued, held)


def test_keys_follow_other_slack(make_door: MakeDoor) -> None:
    """Of what enters from then on."""
    door = make_door(item_ms=0)
    door.entrance.change(changed(3, 70))
    door.fill(3, 1)
    assert door.world.port.look()[0][3] == door.world.clock.now_ns() + 70 * MS


def test_models_share_the_room_and_cost_what_they_cost(make_door: MakeDoor) -> None:
    """An item of 5 ms waits behind items of 30 ms, as long as those are queued."""
    door = make_door(item_ms=30, models=2)
    door.world.port.publish_forecast(1, 1, 5 * MS, [8], [1], [1], [1])
    door.enter("slow", 3)
    door.enter("quick", 3, model=1)  # 0.6 + 0.1
    door.enter("quick too", 3, model=1)
    door.enter("one too many", 3, model=1)
    assert (door.queued[2], door.held[2]) == (3, 1)
