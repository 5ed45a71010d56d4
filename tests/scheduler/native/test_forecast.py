"""What an engine publishes, and the backlog that front ends make of it."""

from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from tests.scheduler.native.native_world import ALL_CLASSES, CANCELLED, ENGINE, EXPIRED, NativeWorld

NOTHING = {"target": 0, "item_ns": 0, "buckets": []}
FACTS: dict[str, Any] = {
    "model": 0,
    "target": 8,
    "item_ns": 2**40,
    "sizes": [1, 8],
    "median_ns": [10, 20],
    "high_ns": [11, 21],
    "floor_ns": [9, 19],
}


def test_forecast_comes_back_as_it_was_published(native: NativeWorld) -> None:
    """Nothing before the first; a later one with fewer buckets leaves none of the older ones behind."""
    assert native.arena.forecast(ENGINE, 0) == NOTHING
    native.engine.publish_forecast(**FACTS)
    buckets = [(1, 10, 11, 9), (8, 20, 21, 19)]
    assert native.arena.forecast(ENGINE, 0) == {
        "target": 8,
        "item_ns": 2**40,
        "buckets": buckets,
    }
    native.engine.publish_forecast(0, 4, 5, [2], [7], [8], [9])
    assert native.arena.forecast(ENGINE, 0) == {
        "target": 4,
        "item_ns": 5,
        "buckets": [(2, 7, 8, 9)],
    }


def test_forecast_has_room_for_as_many_buckets_as_allowed(native: NativeWorld) -> None:
    """Each with numbers of its own."""
    sizes = list(range(1, _ring.MAX_BUCKETS + 1))
    lists = [[size * factor for size in sizes] for factor in (100, 200, 50)]
    native.engine.publish_forecast(0, 64, 1, sizes, *lists)
    buckets = native.arena.forecast(ENGINE, 0)["buckets"]
    assert buckets == [(size, size * 100, size * 200, size * 50) for size in sizes]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("model", 1, "model is 1, allowed is 0 to 0"),
        ("sizes", [1] * 65, "sizes is 65, allowed is 0 to 64"),
        ("sizes", [1], "median_ns is 2, allowed is 1 to 1"),
        ("median_ns", [1], "median_ns is 1, allowed is 2 to 2"),
        ("high_ns", [1, 2, 3], "high_ns is 3, allowed is 2 to 2"),
        ("floor_ns", [], "floor_ns is 0, allowed is 2 to 2"),
    ],
)
def test_forecast_of_the_wrong_shape_is_named_and_not_published(
    native: NativeWorld, argument: str, value: object, message: str
) -> None:
    """Not a part of it."""
    with pytest.raises(ValueError, match=message):
        native.engine.publish_forecast(**FACTS | {argument: value})
    assert native.arena.forecast(ENGINE, 0) == NOTHING


@pytest.mark.parametrize(("argument", "value"), [("target", 2**32), ("item_ns", -1), ("high_ns", [1, 0.5])])
def test_number_that_does_not_fit_is_a_type_error(native: NativeWorld, argument: str, value: object) -> None:
    """Nothing is cut to size or rounded."""
    with pytest.raises(TypeError):
        native.engine.publish_forecast(**FACTS | {argument: value})
    assert native.arena.forecast(ENGINE, 0) == NOTHING


def test_reset_engine_is_taken_for_free_and_keeps_its_forecast(native: NativeWorld) -> None:
    """The instant was that of a batch that died; what batches cost the next engine will not change."""
    assert native.arena.free_at_ns(ENGINE) == 0
    native.engine.publish_free_at(2**64 - 1)
    native.engine.publish_forecast(**FACTS)
    assert native.arena.free_at_ns(ENGINE) == 2**64 - 1
    native.arena.reset_frontend(0)
    assert native.arena.free_at_ns(ENGINE) == 2**64 - 1
    native.arena.reset_engine(ENGINE)
    assert native.arena.free_at_ns(ENGINE) == 0
    assert native.arena.forecast(ENGINE, 0)["target"] == 8


@pytest.fixture
def two_models() -> Any:
    world = NativeWorld(models=2, slots=8)
    yield world
    world.close()


def test_backlog_sums_front_ends_and_weighs_models(two_models: NativeWorld) -> None:
    """By class; every front end reads the same, and what was taken is no longer queued."""
    world = two_models
    world.push(0, [0, 1], cls=2)
    world.push(1, [8], cls=2)
    world.push(1, [9], cls=4)
    world.ports[0].push(ENGINE, 1, 2, [2], 1, 1, _ring.NO_DEADLINE, 1, False)
    for port in world.ports:
        assert port.depths(ENGINE) == [0, 0, 4, 0, 1]
        assert port.backlog_ns(ENGINE) == [0] * 5
    world.engine.publish_forecast(0, 1, 100, [], [], [], [])
    world.engine.publish_forecast(1, 1, 7, [], [], [], [])
    for port in world.ports:
        assert port.backlog_ns(ENGINE) == [0, 0, 307, 0, 100]
    assert [world.arena.depth(ENGINE, model, 2) for model in range(2)] == [3, 1]
    world.take(2)
    assert world.ports[0].depths(ENGINE) == [0, 0, 2, 0, 1]
    assert world.ports[0].backlog_ns(ENGINE) == [0, 0, 107, 0, 100]


def test_absurd_cost_of_an_item_does_not_wrap_around(native: NativeWorld) -> None:
    """It counts for half a minute, which refuses the next request as surely as the true number would."""
    native.engine.publish_forecast(0, 1, 2**64 - 1, [], [], [], [])
    native.push(0, [0, 1, 2, 3])
    assert native.ports[0].backlog_ns(ENGINE)[0] == 4 * 2**35


@pytest.mark.parametrize("classes", range(ALL_CLASSES + 1))
def test_take_follows_the_keys_of_the_classes_it_may_take(native: NativeWorld, classes: int) -> None:
    """Every mask; the other lanes stay as they were."""
    keys = [3, 1, 4, 0, 2]
    slots = [0, 1, 2, 4, 5]
    for cls, (slot, key) in enumerate(zip(slots, keys, strict=True)):
        native.push(slot // native.slots, [slot], cls, key)
    allowed = [cls for cls in range(5) if classes >> cls & 1]
    assert native.take(classes=classes) == [slots[cls] for cls in sorted(allowed, key=keys.__getitem__)]
    left = [int(cls not in allowed) for cls in range(5)]
    assert native.ports[0].depths(ENGINE) == left
    assert len(native.take()) == sum(left)


def test_dead_items_of_other_classes_are_not_ended(native: NativeWorld) -> None:
    """They wait for a take that may touch their lane."""
    native.push(0, [0], cls=0)
    native.ports[0].push(ENGINE, 0, 1, [1], 1, 1, 5, 1, False)
    native.push(0, [2], cls=2)
    native.ports[0].cancel(2)
    assert native.take(now_ns=10, classes=0b00001) == [0]
    assert native.ports[0].drain() == []
    assert native.take(now_ns=10, classes=0b11110) == []
    assert [end[:2] for end in native.ports[0].drain()] == [(1, EXPIRED), (2, CANCELLED)]


def test_take_without_a_mask_takes_every_class(native: NativeWorld) -> None:
    """As callers that know of no mask expect."""
    for cls in range(4):
        native.push(0, [cls], cls)
    into = np.empty(8, np.uint32)
    assert native.engine.take(0, 0, 0, into) == 4
