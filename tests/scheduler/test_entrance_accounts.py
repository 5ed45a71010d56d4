"""The engine time that every class but the most urgent may enter for, however full the lanes are."""

import random
from collections.abc import Callable

import pytest

from scheduler.partition import Outcome
from tests.scheduler.door import QUANTUM_MS, Door
from tests.scheduler.world import MS

MakeDoor = Callable[..., Door]


@pytest.mark.parametrize(("frontends", "entered", "share"), [(1, 8 + 10, 0.05), (4, 8 + 3, 0.0125)])
def test_an_account_fills_at_the_guaranteed_share(
    make_door: MakeDoor, frontends: int, entered: int, share: float
) -> None:
    """Whatever is in the lanes, and though nothing ever leaves them; front ends share it equally."""
    door = make_door(item_ms=1, target=4, slots=256, frontends=frontends)
    door.fill(5, 200)
    assert door.queued[4] == entered
    for _ in range(100):
        door.let_in(after_ms=20)
    assert door.queued[4] - entered == pytest.approx(2000 * share, abs=1)


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


@pytest.mark.parametrize(
    ("timeout_ms", "outcome", "held"), [(1, Outcome.EXPIRED, 0), (99, Outcome.RESULT, 9)]
)
def test_an_account_pays_for_what_is_computed_only(
    make_door: MakeDoor, timeout_ms: int, outcome: Outcome, held: int
) -> None:
    """What has expired in the lanes gives back what it entered for. Else 0.1 ms is there by then, for one."""
    door = make_door(item_ms=1, target=4)
    door.fill(4, 8)  # the room is taken
    for _ in range(10):
        door.enter("paid", 5, timeout_ms=timeout_ms)
    door.world.clock.advance(2 * MS)
    door.take(18)
    assert [end for name, end in door.ended if name == "paid"] == [outcome] * 10
    door.fill(4, 8)
    door.fill(5, 10)
    assert door.held[4] == held
