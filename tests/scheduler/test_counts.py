"""What the scheduler tells whoever watches: batches as they run, and what waits outside the lanes."""

from collections.abc import Iterator

import pytest

from scheduler.dispatcher import Batch
from scheduler.partition import Partition
from tests.scheduler.door import Door, foretell
from tests.scheduler.world import MS, World

BULK = 5


@pytest.fixture
def world() -> Iterator[World]:
    world = World(slots=64)
    yield world
    world.close()


def counted(world: World) -> tuple[list[tuple[int, int]], int, int]:
    """Batches by bucket, rows and padding."""
    found = world.arena.native.batch_counts(0)
    return [(bucket, sum(counts)) for bucket, counts, _ in found["compute"]], found["rows"], found["padding"]


def test_batch_is_counted_when_it_has_run(world: World) -> None:
    """By its bucket, from dispatch to outputs ready; while it runs it is in flight."""
    world.submit("a", [1.0, 2.0, 3.0])
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    assert (counted(world), world.arena.native.in_flight(0)) == (([], 0, 0), 1)
    world.clock.advance(3 * MS)
    world.instance.run(batch)
    assert (counted(world), world.arena.native.in_flight(0)) == (([(4, 1)], 3, 1), 0)
    ((_, _, compute_ns),) = world.arena.native.batch_counts(0)["compute"]
    assert compute_ns >= 3 * MS
    world.submit("b")
    world.run_all()
    assert counted(world) == ([(4, 1), (1, 1)], 4, 1)


def test_items_that_end_unserved_make_no_batch(world: World) -> None:
    """Cancelled before it was taken."""
    world.partition.cancel(world.submit("a"))
    world.run_all()
    assert counted(world) == ([], 0, 0)


def test_what_is_held_at_the_entrance_is_told(world: World) -> None:
    """By model and class, until it enters, expires or is cancelled."""
    door = Door(world, Partition(world.arena, 0, world.frontend_fd, [world.engine_fd]))
    foretell(world, item_ms=10)
    door.crowd(BULK)
    held = [
        door.enter("a", BULK, rows=2),
        door.enter("b", BULK, rows=3),
        door.enter("c", BULK, rows=4, timeout_ms=50),
    ]

    def told() -> list[int]:
        return [world.arena.native.held(0, cls) for cls in range(BULK)]

    assert told() == door.held == [0, 0, 0, 0, 9]
    door.entrance.cancel(held[1])
    assert told() == [0, 0, 0, 0, 6]
    door.let_in(after_ms=100)
    assert told() == [0, 0, 0, 0, 2]
    while door.take(8):
        pass
    door.let_in()
    assert told() == door.held == [0] * BULK
