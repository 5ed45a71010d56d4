"""How long what is held waits for its turn to enter: at best as long as it costs, and by the pace so far."""

from collections.abc import Callable

import pytest

from tests.scheduler.door import Door
from tests.scheduler.world import MS

MakeDoor = Callable[..., Door]


def waits_ms(door: Door, number: int) -> float:
    """Of a new item of the class with this number, at 1 ms for each item."""
    return round(door.entrance.wait_ns(number - 1, MS) / MS, 3)


@pytest.fixture
def door(make_door: MakeDoor) -> Door:
    """Eight items of 1 ms in the lanes leave no room: what enters does so on its account, one in 20 ms."""
    door = make_door(item_ms=1, target=4, slots=512)
    door.fill(5, 8)
    return door


def test_nothing_waits_where_nothing_is_held(door: Door) -> None:
    """Whatever is in the lanes is not waited for here."""
    assert [waits_ms(door, number) for number in range(1, 6)] == [0] * 5


def test_at_best_it_takes_what_is_held_before(door: Door) -> None:
    """Of its own class and more urgent ones. A class of which nothing is held may enter at once."""
    door.fill(4, 10 + 6)
    door.fill(2, 10 + 3)
    assert door.held == [0, 3, 0, 6, 0]
    assert [waits_ms(door, number) for number in range(1, 6)] == [0, 3, 0, 9, 0]


def test_by_the_pace_at_which_the_class_gets_in(door: Door) -> None:
    """Known after a tenth of a second: ten items in 200 ms, so each that is left waits for 20 more."""
    door.fill(4, 10 + 50)
    door.let_in(after_ms=99.9)
    assert waits_ms(door, 4) == door.held[3] == 45
    door.let_in(after_ms=100.1)
    assert waits_ms(door, 4) == 20 * door.held[3] == 20 * 40
    assert waits_ms(door, 3) == 0


def test_the_newest_pace_counts_half(door: Door) -> None:
    """After 5 items in the first tenth of a second 8 that find room, in the next one."""
    door.fill(4, 10 + 50)
    door.let_in(after_ms=100)
    assert waits_ms(door, 4) == 45 * 100 / 5
    assert door.take(23) == 23  # the lanes are empty
    door.let_in(after_ms=100)
    got_in = 45 - door.held[3]
    assert got_in == 8 + 5
    assert waits_ms(door, 4) == round(door.held[3] * 100 / 9, 3)


def test_where_nothing_gets_in_one_item_in_a_second_is_assumed(door: Door) -> None:
    """A prediction, not a verdict."""
    door.enter("spent", 4, rows=100)  # overdraws the account for 1.8 s
    door.fill(4, 3)
    door.let_in(after_ms=99)
    assert waits_ms(door, 4) == 3
    door.let_in(after_ms=1)
    assert (door.held[3], waits_ms(door, 4)) == (3, 3000)


def test_pace_is_never_better_than_the_best(make_door: MakeDoor) -> None:
    """What got in cost a tenth of what an item costs now."""
    door = make_door(item_ms=1, target=4, slots=512)
    door.fill(4, 18 + 10)
    for _ in range(10):
        door.let_in(after_ms=10)
    held = door.held[3]
    assert held > 0
    assert door.entrance.wait_ns(3, 1000 * MS) == held * 1000 * MS


def test_pace_is_forgotten_once_nothing_is_held(door: Door) -> None:
    """Until it is known again, the best is what counts: nobody is refused by what has passed."""
    door.enter("spent", 4, rows=100)
    held = door.enter("held", 4)
    door.let_in(after_ms=100)
    assert waits_ms(door, 4) == 1000
    door.entrance.cancel(held)
    assert waits_ms(door, 4) == 0
    door.enter("held too", 4, rows=2)
    assert waits_ms(door, 4) == 2
    door.let_in(after_ms=99)
    assert waits_ms(door, 4) == 2
    door.let_in(after_ms=1)
    assert waits_ms(door, 4) == 2000


def test_each_class_has_a_pace_of_its_own(door: Door) -> None:
    """One gets in on its account, the other has overdrawn its own."""
    door.enter("spent", 4, rows=100)
    door.fill(4, 1)
    door.fill(3, 10 + 20)
    door.let_in(after_ms=100)
    assert door.held == [0, 0, 15, 1, 0]
    assert (waits_ms(door, 3), waits_ms(door, 4)) == (15 * 20, 1000)
