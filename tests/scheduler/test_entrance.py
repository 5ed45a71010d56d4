"""Bulk enters the lanes while they hold little of it, or on the account of its class; the rest is held."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from scheduler import _ring
from scheduler.entrance import BULK_BATCHES, GUARANTEED_SHARE, SWEEP_EVERY_NS, Entrance
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import DEFAULT_LIMITS, ClassLimits
from tests.scheduler.world import EAGER, MS, World

MakeDoor = Callable[..., "Door"]
# The classes 3, 4 and 5 are bulk, and this is the most that an account holds.
QUANTUM_MS = 10


@dataclass
class Door:
    """An entrance, the lanes behind it, and how everything ended that has entered them or not."""

    world: World
    partition: Partition
    frontends: int = 1  # that share what is guaranteed
    ended: list[tuple[str, Outcome]] = field(default_factory=list)
    waits_ms: dict[str, float] = field(default_factory=dict)
    alarms: int = 0

    def __post_init__(self) -> None:
        self.entrance = Entrance(
            self.partition,
            Forecasts(self.world.arena, 0),
            DEFAULT_LIMITS,
            models=len(self.world.plans),
            bulk_quantum_ns=QUANTUM_MS * MS,
            frontends=self.frontends,
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
            self.waits_ms[name] = submission.queue_wait_ns / MS
            self.partition.release(submission)

        submission = self.partition.reserve(rows, model, number - 1, ended)
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

    def crowd(self, number: int) -> None:
        """At 10 ms for each item: no room, and the account of this class overdrawn by 190 ms, for 3.8 s."""
        self.fill(number, 2)
        self.enter("crowd", number, rows=20)
        assert (self.queued[number - 1], self.held[number - 1]) == (22, 0)

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
        self.partition.drain()
        self.partition.check_integrity()
        return taken

    @property
    def queued(self) -> list[int]:
        """In the lanes, by class."""
        return self.partition.depths(0)

    @property
    def held(self) -> list[int]:
        """At the door, by class."""
        return self.entrance.held_rows


@pytest.fixture
def make_door(make_world: Callable[..., World]) -> MakeDoor:
    def make(
        item_ms: float, target: int = 1, *, slots: int = 64, models: int = 1, frontends: int = 1
    ) -> Door:
        """An item costs so much, and a full batch has so many."""
        world = make_world(slots=slots, plans=[EAGER] * models)
        if item_ms:
            for model in range(models):
                foretell(world, item_ms, target, model=model)
        return Door(world, world.partition, frontends)

    return make


def foretell(world: World, item_ms: float, target: int = 1, *, model: int = 0) -> None:
    """What an engine publishes that takes so long for each item."""
    item_ns = round(item_ms * MS)
    batch = [target * item_ns]
    world.port.publish_forecast(model, target, item_ns, [target], batch, batch, batch)


def test_figures_are_what_these_tests_assume() -> None:
    """Room for two batches, 5 % for each class, and a look for what has expired every 20 ms."""
    assert (BULK_BATCHES, GUARANTEED_SHARE, SWEEP_EVERY_NS) == (2, 0.05, 20 * MS)


# -- the room -----------------------------------------------------------------------------------


def test_urgent_items_enter_at_once(make_door: MakeDoor) -> None:
    """However many there are, however long they take, and whatever is held."""
    door = make_door(item_ms=1000)
    door.fill(5, 4)  # one into empty lanes, one on the account
    assert (door.held, door.alarms) == ([0, 0, 0, 0, 2], 2)
    door.fill(1, 20)
    door.fill(2, 20)
    assert door.queued == [20, 20, 0, 0, 2]
    assert door.held == [0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("number", "item_ms", "target", "room", "account"),
    [
        (3, 1, 4, 8, 10),
        (4, 1, 4, 8, 10),  # the slack of the class makes no difference
        (5, 1, 8, 16, 10),
        (5, 1, 16, 20, 10),  # a batch of 16 would be cut to the quantum
        (5, 3, 1, 2, 4),  # the last of the four overdraws it
        (5, 3, 3, 6, 4),  # 18 ms, and 20 with a larger batch
        (5, 1000, 1, 1, 1),  # one may always wait
        (5, 0, 1, 50, 0),  # nothing is known yet: nothing is held
    ],
)
def test_two_batches_wait_and_a_quantum_on_the_account(
    make_door: MakeDoor, number: int, item_ms: float, target: int, room: int, account: int
) -> None:
    """The rest is held, and told of; each time, so that nobody misses it."""
    door = make_door(item_ms, target)
    enter = room + account
    door.fill(number, 50)
    assert door.queued[number - 1] == enter
    assert (door.held[number - 1], door.alarms) == (50 - enter, 50 - enter)
    assert door.entrance.holds == (enter < 50)
    door.partition.check_integrity()


def test_bulk_of_every_class_shares_the_room(make_door: MakeDoor) -> None:
    """Whoever comes first has it; the others enter on accounts of their own."""
    door = make_door(item_ms=1, target=4)
    door.fill(5, 4)
    door.fill(3, 20)
    assert door.queued == [0, 0, 4 + 10, 0, 4]
    door.fill(5, 20)
    door.fill(4, 20)
    assert door.queued == [0, 0, 4 + 10, 10, 4 + 10]


def test_urgent_work_takes_no_room(make_door: MakeDoor) -> None:
    """Bulk that is held would not help it: it is in front."""
    door = make_door(item_ms=1, target=4)
    door.fill(1, 20)
    door.fill(2, 20)
    door.fill(3, 20)
    assert door.queued == [20, 20, 18, 0, 0]


def test_bulk_of_other_front_ends_takes_room(make_world: Callable[..., World]) -> None:
    """The lanes are the engine's; only the accounts are each front end's own."""
    world = make_world(frontends=2)
    foretell(world, 10)
    here = Door(world, world.partition)
    there = Door(world, Partition(world.arena, 1, world.frontend_fd, [world.engine_fd]))
    there.fill(3, 2)
    here.fill(3, 5)
    assert (here.queued[2], here.held[2]) == (2 + 1, 4)
    assert here.take(2) == 2
    here.let_in()
    assert (here.queued[2], here.held[2]) == (2, 3)


@pytest.mark.parametrize("rows", [8, 9, 50])
def test_empty_lanes_take_a_request_of_any_size(make_door: MakeDoor, rows: int) -> None:
    """Nothing is gained by holding it; the account is as full as before."""
    door = make_door(item_ms=1, target=4)
    door.enter("big", 3, rows=rows)
    door.fill(3, 14)
    expected = 10 if rows > 8 else 10 + 8 - rows
    assert (door.queued[2], door.held[2]) == (rows + expected, 14 - expected)


def test_what_is_held_enters_as_the_lanes_empty(make_door: MakeDoor) -> None:
    """In the order of arrival, as much as there is room for."""
    door = make_door(item_ms=10)
    names = door.fill(3, 9)
    assert (door.queued[2], door.held[2]) == (3, 6)
    seen = []
    for count in (1, 1, 2, 2, 1, 2):
        assert door.take(count) == count
        door.let_in()
        seen.append((door.queued[2], door.held[2]))
    assert seen == [(2, 6), (2, 5), (2, 3), (2, 1), (2, 0), (0, 0)]
    assert door.ended == [(name, Outcome.RESULT) for name in names]
    assert not door.entrance.holds


def test_nobody_overtakes_in_its_own_class(make_door: MakeDoor) -> None:
    """A request of one row would fit, and stays behind the big one that came before it."""
    door = make_door(item_ms=10)
    door.crowd(3)
    door.enter("big", 3, rows=2)
    door.enter("small", 3)
    door.take(21)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (1, 3)
    door.enter("smaller still", 3)
    assert (door.queued[2], door.held[2]) == (1, 4)
    door.take(1)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (2, 2)


def test_more_urgent_bulk_enters_first(make_door: MakeDoor) -> None:
    """Though it came later; the others have what room it leaves."""
    door = make_door(item_ms=10)
    door.fill(5, 5)
    door.fill(3, 2)  # one on its account
    assert (door.queued, door.held) == ([0, 0, 1, 0, 3], [0, 0, 1, 0, 2])
    assert door.take(3) == 3  # that one, and two of class 5
    door.let_in()
    assert (door.queued, door.held) == ([0, 0, 1, 0, 1], [0, 0, 0, 0, 2])
    door.take(2)
    door.let_in()
    assert (door.queued, door.held) == ([0, 0, 0, 0, 2], [0] * 5)


def test_models_share_the_room_and_cost_what_they_cost(make_door: MakeDoor) -> None:
    """Items of 5 ms have room for 10 ms, and items of 30 ms were there before."""
    door = make_door(item_ms=30, models=2)
    foretell(door.world, 5, model=1)
    door.enter("slow", 3)
    for name in ("quick", "quick too"):  # on the account: 5 ms each
        door.enter(name, 3, model=1)
    door.enter("one too many", 3, model=1)
    assert (door.queued[2], door.held[2]) == (3, 1)
    for left, held in ((2, 1), (2, 0)):  # behind 10 ms, and behind 5
        slots = np.empty(1, np.uint32)
        assert door.world.port.take(0 if held else 1, 0, 0, slots) == 1
        door.let_in()
        assert (door.queued[2], door.held[2]) == (left, held)


# -- the accounts -------------------------------------------------------------------------------


@pytest.mark.parametrize(("frontends", "share"), [(1, 0.05), (4, 0.0125)])
def test_an_account_fills_at_the_guaranteed_share(make_door: MakeDoor, frontends: int, share: float) -> None:
    """Whatever is in the lanes, and though nothing ever leaves them; front ends share it equally."""
    door = make_door(item_ms=1, target=4, slots=256, frontends=frontends)
    door.fill(5, 200)
    assert door.queued[4] == 18
    for _ in range(100):
        door.let_in(after_ms=20)
    assert door.queued[4] - 18 == pytest.approx(2000 * share, abs=1)


def test_an_account_holds_a_quantum_at_most(make_door: MakeDoor) -> None:
    """After an hour in which nobody needed it."""
    door = make_door(item_ms=1, target=4, slots=128)
    for entered in (8 + 10, 8 + 10 + 10):
        door.fill(5, entered - door.queued[4])
        door.fill(5, 1)
        assert (door.queued[4], door.held[4]) == (entered, 1)
        door.entrance.cancel(next(iter(door.entrance._held[4])))
        door.world.clock.advance(3_600_000 * MS)


@pytest.mark.parametrize("seed", range(3))
def test_what_enters_on_an_account_is_bounded_in_any_interval(make_door: MakeDoor, seed: int) -> None:
    """A quantum, its share of the interval, and the request that overdraws it: requests of random sizes."""
    noise = random.Random(seed)
    door = make_door(item_ms=1, target=4, slots=1024)
    door.fill(4, 8)  # the room is taken
    entered: list[tuple[float, int]] = []
    now_ms = 0.0

    def note() -> None:
        if (more := door.queued[4] - sum(cost for _, cost in entered)) > 0:
            entered.append((now_ms, more))

    for number in range(200):
        door.enter(str(number), 5, rows=noise.randint(1, 5))
        note()
        now_ms += (step_ms := noise.choice([0, 1, 10, 100]))
        door.let_in(after_ms=step_ms)
        note()
    assert door.held[4] > 0, "more was asked for than that"
    for first in range(len(entered)):
        for last in range(first, len(entered)):
            work_ms = sum(cost for _, cost in entered[first : last + 1])
            length_ms = entered[last][0] - entered[first][0]
            assert work_ms <= QUANTUM_MS + 0.05 * length_ms + 5
    assert door.queued[4] >= 0.05 * now_ms, "and not much less, while something is held"


@pytest.mark.parametrize(("every_ms", "held"), [(100, 0), (20, 0), (10, 90)])
def test_who_asks_for_less_than_its_share_enters_on_arrival(
    make_door: MakeDoor, every_ms: int, held: int
) -> None:
    """A flood of class 3 is held; items of 1 ms of class 5 enter all the same, up to one every 20 ms."""
    door = make_door(item_ms=1, target=4, slots=1024)
    door.fill(3, 500)
    for number in range(2000 // every_ms):
        door.let_in(after_ms=every_ms)
        door.enter(str(number), 5)
    assert door.held[4] == pytest.approx(held, abs=1 if held else 0)
    assert door.queued[4] == 2000 // every_ms - door.held[4]
    assert door.held[2] > 300


def test_a_request_may_overdraw_its_account_once(make_door: MakeDoor) -> None:
    """30 ms from an account of 10: nothing more enters until the 20 ms are earned."""
    door = make_door(item_ms=1, target=4)
    door.fill(4, 8)
    door.enter("big", 5, rows=30)
    door.enter("next", 5)
    assert (door.queued[4], door.held[4]) == (30, 1)
    door.let_in(after_ms=400)
    assert door.held[4] == 1
    door.let_in(after_ms=0.1)
    assert door.held[4] == 0


def test_request_larger_than_the_room_does_not_starve(make_door: MakeDoor) -> None:
    """The lanes stay full for ever; once the account has something, it enters as a whole."""
    door = make_door(item_ms=1, target=4)
    door.fill(3, 18)
    door.enter("spent", 5, rows=20)  # overdraws the account by 10 ms, for 200
    door.enter("big", 5, rows=12)
    door.let_in(after_ms=200)
    assert (door.queued[4], door.held[4]) == (20, 12)
    door.let_in(after_ms=1)
    assert (door.queued[4], door.held[4]) == (32, 0)


# -- keys, deadlines, and those who leave -------------------------------------------------------


def test_key_starts_to_age_on_entering_and_the_wait_on_arrival(make_door: MakeDoor) -> None:
    """What was held is measured as waiting, and does not arrive in the lane ahead of what is there."""
    door = make_door(item_ms=1000)
    start_ns = door.world.clock.now_ns()
    door.fill(3, 3)
    door.world.clock.advance(200 * MS)
    door.take(2)
    door.let_in()
    ((_, class_index, depth, key, enqueued_ns, _),) = door.world.port.look()
    assert (class_index, depth, enqueued_ns) == (2, 1, start_ns)
    assert key == start_ns + 200 * MS + 50 * MS


def test_held_item_expires_wherever_it_stands(make_door: MakeDoor) -> None:
    """Within 20 ms of its deadline, behind one that has none; its wait is told, and it never enters."""
    door = make_door(item_ms=10)
    door.crowd(3)
    door.enter("patient", 3)
    door.enter("late", 3, rows=2, timeout_ms=5)
    door.enter("later", 3, timeout_ms=60)
    door.let_in(after_ms=5)  # looks for it now
    door.let_in(after_ms=19.9)
    assert (door.ended, door.held[2]) == ([], 4)
    door.let_in(after_ms=0.1)
    assert (door.ended, door.held[2]) == ([("late", Outcome.EXPIRED)], 2)
    assert door.waits_ms == {"late": 25}
    door.partition.check_integrity()
    door.take(22)
    door.let_in()
    assert door.take(8) == 2
    assert [name for name, _ in door.ended if name in ("patient", "later")] == ["patient", "later"]


def test_what_has_expired_and_enters_before_anybody_looks_is_dropped_at_the_take(
    make_door: MakeDoor,
) -> None:
    """It is not computed either way."""
    door = make_door(item_ms=10)
    door.crowd(3)
    door.enter("late", 3, timeout_ms=1)
    door.let_in()
    door.take(22)
    door.let_in(after_ms=2)
    assert (door.queued[2], door.held[2]) == (1, 0)
    assert door.take(8) == 0
    assert (door.ended[-1], door.waits_ms["late"]) == (("late", Outcome.EXPIRED), 2)


def test_caller_that_leaves_a_held_item_hears_at_once(make_door: MakeDoor) -> None:
    """And its slots are free; what has entered is left to the engine to skip."""
    door = make_door(item_ms=10)
    door.crowd(4)
    entered = door.enter("entered", 3)
    held = door.enter("held", 4, rows=2)
    free = door.partition.free_slots
    door.entrance.cancel(held)
    assert door.ended == [("held", Outcome.CANCELLED)]
    assert (door.held[3], door.partition.free_slots) == (0, free + 2)
    door.entrance.cancel(entered)
    assert len(door.ended) == 1
    assert door.take(64) == 22
    assert door.ended[1] == ("entered", Outcome.CANCELLED)


def test_lost_engine_ends_what_is_held_as_well(make_door: MakeDoor) -> None:
    """Once each: the partition ends what has entered."""
    door = make_door(item_ms=1000)
    for number in (3, 4, 5):
        door.fill(number, 3)
    assert sum(door.held) == 5
    door.entrance.lose_engine()
    door.partition.lose_engine()
    assert len(door.ended) == len({name for name, _ in door.ended}) == 9
    assert {outcome for _, outcome in door.ended} == {Outcome.LOST}
    assert (door.entrance.holds, door.partition.free_slots) == (False, 64)
    door.partition.check_integrity()


# -- other slacks -------------------------------------------------------------------------------


def changed(number: int, slack_ms: float) -> list[ClassLimits]:
    limits = list(DEFAULT_LIMITS)
    limits[number - 1] = replace(limits[number - 1], slack_ns=round(slack_ms * MS))
    return limits


def test_a_class_that_has_become_urgent_is_not_held_any_more(make_door: MakeDoor) -> None:
    """What was held of it enters next, and what comes enters at once."""
    door = make_door(item_ms=10)
    door.crowd(3)
    door.fill(3, 6)
    door.entrance.change(changed(3, QUANTUM_MS))
    assert (door.queued[2], door.held[2]) == (22, 6)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (28, 0)
    door.fill(3, 20)
    assert (door.queued[2], door.held[2]) == (48, 0)


def test_a_class_that_has_become_bulk_is_held_and_takes_room(make_door: MakeDoor) -> None:
    """As the others are, with an account of its own."""
    door = make_door(item_ms=10)
    door.entrance.change(changed(2, QUANTUM_MS + 0.001))
    door.fill(2, 6)
    door.fill(3, 6)
    assert (door.queued, door.held) == ([0, 3, 1, 0, 0], [0, 3, 5, 0, 0])


def test_keys_follow_other_slack(make_door: MakeDoor) -> None:
    """Of what enters from then on."""
    door = make_door(item_ms=0)
    door.entrance.change(changed(3, 70))
    door.fill(3, 1)
    assert door.world.port.look()[0][3] == door.world.clock.now_ns() + 70 * MS
