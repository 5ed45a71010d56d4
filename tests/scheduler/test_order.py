"""The exact order in which queued items are taken, also while slack changes."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.dispatcher import Batch
from scheduler.policy import BatchPlan
from scheduler.priority import CLASS_COUNT, DEFAULT_LIMITS, ClassLimits, PriorityClass
from tests.scheduler.world import MS, World

ONE_BY_ONE = BatchPlan((1,), (0,) * CLASS_COUNT, None)
MakeWorld = Callable[..., World]


def with_slack(class_number: int, slack_ms: float) -> list[ClassLimits]:
    """The defaults, with another slack of one class."""
    limits = list(DEFAULT_LIMITS)
    limits[class_number - 1] = replace(limits[class_number - 1], slack_ns=int(slack_ms * MS))
    return limits


def taken(world: World) -> list[str]:
    """The names in the order in which they are served from here on, one item to a batch."""
    before = len(world.answers)
    world.run_all()
    return list(world.answers)[before:]


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        # (name, class, ms): the key is the time plus 0, 5, 50, 500 or 2000 ms.
        ([("a", 3, 0), ("b", 3, 0), ("c", 3, 1)], "abc"),  # first in, first out
        ([("a", 5, 0), ("b", 4, 0), ("c", 3, 0), ("d", 2, 0), ("e", 1, 0)], "edcba"),
        ([("a", 5, 0), ("b", 4, 1499), ("c", 4, 1501)], "bac"),  # overtaken up to its horizon
        ([("a", 5, 0), ("b", 1, 1999), ("c", 1, 2001)], "bac"),
        ([("a", 5, 0), ("b", 4, 1500), ("c", 3, 1950), ("d", 1, 2000)], "dcba"),  # equal: by class
        ([("a", 2, 0), ("b", 1, 4), ("c", 2, 4), ("d", 1, 6), ("e", 1, 9)], "badec"),
    ],
)
def test_the_smallest_key_is_served_first(
    make_world: MakeWorld, arrivals: list[tuple[str, int, int]], expected: str
) -> None:
    """Whatever the class; of equal keys the more urgent class, and within a class the older item."""
    world = make_world(plans=[ONE_BY_ONE])
    at_ms = 0
    for name, number, arrival_ms in arrivals:
        world.clock.advance((arrival_ms - at_ms) * MS)
        at_ms = arrival_ms
        world.submit(name, cls=PriorityClass(number))
    assert "".join(taken(world)) == expected


def test_a_batch_holds_its_items_in_that_order(world: World) -> None:
    """Slots are given out from 0 on, so they say who is who."""
    for name, number in enumerate((5, 1, 3, 2, 1, 4)):
        world.submit(str(name), cls=PriorityClass(number))
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    assert list(batch.slots) == [1, 4, 3, 2, 5, 0]


def test_lowered_slack_moves_nothing_that_is_queued(make_world: MakeWorld) -> None:
    """From 50 to 10 ms: what comes next stays behind what waits, and stands at its key until 40 ms later."""
    world = make_world(plans=[ONE_BY_ONE])
    world.submit("before", cls=PriorityClass(3))  # key 50
    world.stamp.change(with_slack(3, 10))
    world.clock.advance(1 * MS)
    world.submit("after", cls=PriorityClass(3))  # key 50 and not 11
    world.clock.advance(43 * MS)
    world.submit("earlier", cls=PriorityClass(2))  # key 49
    world.clock.advance(2 * MS)
    world.submit("later", cls=PriorityClass(2))  # key 51
    world.submit("caught up", cls=PriorityClass(3))  # key 56
    assert taken(world) == ["earlier", "before", "after", "later", "caught up"]


def test_raised_slack_moves_nothing_that_is_queued(make_world: MakeWorld) -> None:
    """From 50 to 1000 ms: what waits keeps its key, what comes next stands back behind the next class."""
    world = make_world(plans=[ONE_BY_ONE])
    world.submit("before", cls=PriorityClass(3))  # key 50
    world.stamp.change(with_slack(3, 1000))
    world.submit("after", cls=PriorityClass(3))  # key 1000
    world.submit("next class", cls=PriorityClass(4))  # key 500
    world.clock.advance(49 * MS)
    world.submit("urgent", cls=PriorityClass(1))  # key 49
    assert taken(world) == ["urgent", "before", "next class", "after"]


class Push(NamedTuple):
    """One item."""

    model: int
    class_index: int


OPERATIONS = st.lists(
    st.one_of(
        st.builds(Push, st.integers(0, 1), st.integers(0, CLASS_COUNT - 1)),
        st.integers(1, 9),  # ns go by
        st.none(),  # one batch runs
        st.lists(st.integers(0, 12), min_size=CLASS_COUNT, max_size=CLASS_COUNT),  # slack from now on
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_takes_follow_the_keys_whatever_slack_becomes(
    operations: list[Push | int | list[int] | None],
) -> None:
    """Two models, any classes, takes in between: always the smallest key, and each lane in its own order."""
    world = World(plans=[ONE_BY_ONE, ONE_BY_ONE], slots=64)
    queued: list[tuple[int, int, int, int]] = []  # key, model, class, number: ties are decided in this order
    expected: list[str] = []
    last_key: dict[tuple[int, int], int] = {}
    slack = [0] * CLASS_COUNT
    world.stamp.change([ClassLimits(0, 0, 1, 1)] * CLASS_COUNT)
    try:
        for operation in [*operations, *[None] * len(operations)]:
            match operation:
                case Push(model, cls):
                    number = len(queued) + len(expected)
                    world.submit(str(number), model=model, cls=PriorityClass(cls + 1))
                    key = max(world.clock.now_ns() + slack[cls], last_key.get((model, cls), 0))
                    last_key[model, cls] = key
                    queued.append((key, model, cls, number))
                case int():
                    world.clock.advance(operation)
                case list():
                    slack = operation
                    world.stamp.change([ClassLimits(slack_ns, 0, 1, 1) for slack_ns in slack])
                case None:
                    ran = world.run_once()
                    assert (ran is not None) == bool(queued)
                    if queued:
                        queued.remove(first := min(queued))
                        expected.append(str(first[3]))
        assert list(world.answers) == expected
        assert not queued
        world.partition.check_integrity()
    finally:
        world.close()
