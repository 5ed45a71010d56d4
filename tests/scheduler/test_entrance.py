"""All but the most urgent class enters while the lanes hold little of it, or on an account, or is held."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from scheduler.entrance import BATCHES, GUARANTEED_SHARE, SWEEP_EVERY_NS
from scheduler.partition import Outcome, Partition
from scheduler.priority import DEFAULT_LIMITS, ClassLimits
from tests.scheduler.door import Door, foretell
from tests.scheduler.world import MS, World

MakeDoor = Callable[..., Door]


def test_figures_are_what_these_tests_assume() -> None:
    """Room for two batches, 5 % for each class, and a look for what has expired every 20 ms."""
    assert (BATCHES, GUARANTEED_SHARE, SWEEP_EVERY_NS) == (2, 0.05, 20 * MS)


# -- the room -----------------------------------------------------------------------------------


def test_the_most_urgent_class_enters_at_once(make_door: MakeDoor) -> None:
    """However many there are, however long they take, and whatever is held."""
    door = make_door(item_ms=1000)
    door.fill(5, 4)  # one into empty lanes, one on the account
    assert (door.held, door.alarms) == ([0, 0, 0, 0, 2], 2)
    door.fill(1, 40)
    assert (door.queued, door.held) == ([40, 0, 0, 0, 2], [0, 0, 0, 0, 2])


@pytest.mark.parametrize(
    ("number", "item_ms", "target", "room", "account"),
    [
        (2, 1, 4, 8, 10),
        (3, 1, 4, 8, 10),  # the slack of the class makes no difference
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


def test_all_classes_but_the_most_urgent_share_the_room(make_door: MakeDoor) -> None:
    """Whoever comes first has it; the others enter on accounts of their own."""
    door = make_door(item_ms=1, target=4)
    door.fill(5, 4)
    door.fill(2, 16)
    assert door.queued == [0, 4 + 10, 0, 0, 4]
    for number in (3, 5, 4):
        door.fill(number, 11)
    assert door.queued == [0, 4 + 10, 10, 10, 4 + 10]


def test_the_most_urgent_class_takes_no_room(make_door: MakeDoor) -> None:
    """To hold the others would not help it: it is in front."""
    door = make_door(item_ms=1, target=4)
    door.fill(1, 40)
    door.fill(3, 20)
    assert door.queued == [40, 0, 18, 0, 0]


def test_what_other_front_ends_have_queued_takes_room(make_world: Callable[..., World]) -> None:
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


def test_more_urgent_work_enters_first(make_door: MakeDoor) -> None:
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
    """It is not computed either way; here the clock alone decides what enters."""
    door = make_door(item_ms=10)
    door.change(DEFAULT_LIMITS, early_refusal=False)
    door.crowd(3)
    door.enter("late", 3, timeout_ms=1)
    door.let_in()
    door.take(22)
    door.let_in(after_ms=2)
    assert (door.queued[2], door.held[2]) == (1, 0)
    assert door.take(8) == 0
    assert (door.ended[-1], door.waits_ms["late"]) == (("late", Outcome.EXPIRED), 2)


def test_what_cannot_be_done_any_more_does_not_enter(make_door: MakeDoor) -> None:
    """It ends as expired when its turn comes; the account has not paid for it, and lets the next one in."""
    door = make_door(item_ms=10)
    door.fill(1, 4)  # 40 ms of work that goes before it
    door.crowd(3)
    door.enter("late", 3, timeout_ms=3_950)
    door.enter("next", 3)
    door.let_in(after_ms=3_900)
    assert (door.ended, door.waits_ms["late"]) == ([("late", Outcome.EXPIRED)], 3_900)
    assert (door.queued[2], door.held[2]) == (23, 0)


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
    door.engines.went(0)
    door.entrance.lose_stranded()
    door.partition.lose_engine(0)
    assert len(door.ended) == len({name for name, _ in door.ended}) == 9
    assert {outcome for _, outcome in door.ended} == {Outcome.LOST}
    assert (door.entrance.holds, door.partition.free_slots) == (False, 64)
    door.partition.check_integrity()


def test_only_what_nobody_serves_is_lost(make_door: MakeDoor) -> None:
    """What is held while an engine is there stays held."""
    door = make_door(item_ms=1000)
    door.fill(3, 4)
    door.entrance.lose_stranded()
    assert (door.ended, door.held[2]) == ([], 2)
    assert door.entrance.holds_for(0)


# -- other slacks, another quantum --------------------------------------------------------------


def changed(number: int, slack_ms: float) -> list[ClassLimits]:
    limits = list(DEFAULT_LIMITS)
    limits[number - 1] = replace(limits[number - 1], slack_ns=round(slack_ms * MS))
    return limits


def test_a_class_with_the_smallest_slack_is_not_held_any_more(make_door: MakeDoor) -> None:
    """What was held of it enters next, and what comes enters at once and takes no room."""
    door = make_door(item_ms=10)
    door.crowd(3)
    door.fill(3, 6)
    door.change(changed(3, 0))
    assert (door.queued[2], door.held[2]) == (22, 6)
    door.let_in()
    assert (door.queued[2], door.held[2]) == (28, 0)
    door.fill(3, 20)
    door.fill(4, 4)
    assert (door.queued, door.held) == ([0, 0, 48, 3, 0], [0, 0, 0, 1, 0])


def test_a_class_that_can_stand_back_is_held_and_takes_room(make_door: MakeDoor) -> None:
    """Though it was the most urgent one; now that is another. It has an account of its own."""
    door = make_door(item_ms=10)
    door.change(changed(1, 6))
    for number in (2, 1, 3):
        door.fill(number, 6)
    assert (door.queued, door.held) == ([3, 6, 1, 0, 0], [3, 0, 5, 0, 0])


def test_keys_follow_other_slack(make_door: MakeDoor) -> None:
    """Of what enters from then on."""
    door = make_door(item_ms=0)
    door.change(changed(3, 70))
    door.fill(3, 1)
    assert door.world.port.look()[0][3] == door.world.clock.now_ns() + 70 * MS


@pytest.mark.parametrize(("quantum_ms", "room", "account"), [(30, 8, 30), (2, 4, 2), (10, 8, 0)])
def test_another_quantum_is_another_account(
    make_door: MakeDoor, quantum_ms: float, room: int, account: int
) -> None:
    """A new one, and full; and batches are cut to the quantum as well. The same one stays as it is."""
    door = make_door(item_ms=1, target=4)
    door.fill(3, 30)
    assert (door.queued[2], door.held[2]) == (8 + 10, 12)
    door.take(18)
    door.change(DEFAULT_LIMITS, quantum_ms)
    door.let_in()
    door.fill(3, 50)
    assert (door.queued[2], door.held[2]) == (room + account, 12 + 50 - room - account)
