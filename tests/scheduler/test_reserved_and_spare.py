"""Several instances: reserved for urgent work, spare beside the front ends, and when one is free."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from scheduler.dispatcher import Batch
from scheduler.latency import WINDOW
from scheduler.policy import SPARE_BATCHES, BatchPlan, WaitUntil
from scheduler.priority import PriorityClass
from tests.scheduler.world import EAGER, MS, World

MakeWorld = Callable[..., World]
URGENT = PriorityClass.REAL_TIME_TRADING
ALSO_URGENT = PriorityClass.MARKET_DATA_UPDATE
BULK = PriorityClass.BACKGROUND_TASKS
DEADLINE_S = 10.0


def classes_of(world: World, batch: Batch | WaitUntil | None) -> list[int]:
    """Of the items of a batch, by class number."""
    assert isinstance(batch, Batch)
    pending = world.partition._pending
    found = [pending[slot] for slot in batch.slots]
    return [submission.class_index + 1 for submission in found if submission is not None]


class Instance:
    """A thread that takes batches and keeps them, until the dispatcher stops."""

    def __init__(self, next_batch: Callable[[], Batch | None]) -> None:
        self._batches: queue.Queue[Batch | None] = queue.Queue()
        self._next_batch = next_batch
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._batches.put(batch)
        self._batches.put(None)

    def next(self) -> Batch | None:
        """What it takes next; None: it has ended."""
        return self._batches.get(timeout=DEADLINE_S)

    @property
    def has_taken_nothing(self) -> bool:
        return self._batches.empty()

    def join(self) -> None:
        """It must not touch a world that is closed."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


Start = Callable[[Callable[[], Batch | None]], Instance]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """With room for many batches of eight."""
    return make_world(slots=64)


@pytest.fixture
def start(world: World) -> Iterator[Start]:
    """Starts instances of the world, and ends them with the test."""
    instances: list[Instance] = []

    def start(next_batch: Callable[[], Batch | None]) -> Instance:
        instances.append(Instance(next_batch))
        return instances[-1]

    yield start
    world.dispatcher.stop()
    for instance in instances:
        instance.join()


@pytest.fixture
def reserved(world: World, start: Start) -> Instance:
    """One reserved instance, waiting for work."""
    return start(lambda: world.dispatcher.next_batch(reserved=True))


# -- reserved -----------------------------------------------------------------------------------


def test_reserved_instance_takes_urgent_items_only(world: World) -> None:
    """Of every urgent class, in the order of their keys; bulk rides with the others."""
    world.submit("bulk", rows=[1.0] * 5, cls=BULK)
    world.submit("market", rows=[1.0] * 2, cls=ALSO_URGENT)
    world.submit("trade", cls=URGENT)
    assert classes_of(world, world.dispatcher.poll(reserved=True)) == [1, 2, 2]
    assert world.dispatcher.poll(reserved=True) == WaitUntil(None)
    assert classes_of(world, world.dispatcher.poll()) == [5] * 5


def test_reserved_instance_leaves_bulk_that_has_aged_past_urgent_work(world: World) -> None:
    """It is next for any other instance; this one goes on with what is urgent."""
    world.submit("bulk", cls=BULK)
    world.clock.advance(3_000 * MS)
    world.submit("trade", cls=URGENT)
    assert classes_of(world, world.dispatcher.poll(reserved=True)) == [1]
    assert classes_of(world, world.dispatcher.poll()) == [5]


def test_what_is_urgent_to_a_reserved_instance_is_the_plans_to_say(make_world: MakeWorld) -> None:
    """Each model's own."""
    world = make_world(
        plans=[
            BatchPlan((8,), (0,) * 5, None, urgent=(False,) * 5),
            BatchPlan((8,), (0,) * 5, None, urgent=(False,) * 4 + (True,)),
        ]
    )
    for model in range(2):
        for cls in (URGENT, BULK):
            world.submit(f"{model} {cls}", cls=cls, model=model)
    batch = world.dispatcher.poll(reserved=True)
    assert classes_of(world, batch) == [5]
    assert isinstance(batch, Batch)
    assert batch.model == 1
    assert world.dispatcher.poll(reserved=True) == WaitUntil(None)


def test_urgent_work_goes_on_while_the_only_other_instance_is_busy(world: World, reserved: Instance) -> None:
    """Whatever is queued of bulk waits for that one."""
    world.submit("long", cls=BULK)
    busy = world.dispatcher.next_batch()
    assert classes_of(world, busy) == [5]
    for number in range(3):
        world.submit(f"bulk {number}", cls=BULK)
        world.submit(f"trade {number}", cls=URGENT)
        assert classes_of(world, reserved.next()) == [1]
    assert isinstance(busy, Batch)
    world.instance.run(busy)
    assert classes_of(world, world.dispatcher.next_batch()) == [5] * 3
    assert reserved.has_taken_nothing


def test_idle_instance_takes_the_lead_from_a_reserved_one(
    world: World, reserved: Instance, start: Start
) -> None:
    """That one sleeps at the gate and hears of urgent items; bulk would wake nobody who may take it."""
    world.submit("trade")
    assert reserved.next() is not None  # it leads, and goes on leading
    with_any_work = start(world.dispatcher.next_batch)
    world.submit("bulk", cls=BULK)
    assert classes_of(world, with_any_work.next()) == [5]


def test_stop_ends_every_kind_of_instance(world: World, reserved: Instance, start: Start) -> None:
    """Whoever leads, and whoever waits to, or for an invitation that cannot come any more."""
    others = [
        start(world.dispatcher.next_batch),
        start(world.dispatcher.next_batch),
        start(lambda: world.dispatcher.next_batch(reserved=True)),
        start(world.dispatcher.next_spare_batch),
    ]
    world.dispatcher.stop()
    assert [instance.next() for instance in (reserved, *others)] == [None] * 5


# -- spare --------------------------------------------------------------------------------------


def test_spare_instance_is_invited_when_enough_is_left_behind(world: World, start: Start) -> None:
    """With target 8: 23 queued leave 15 behind the first batch, and then 23 - 8 + 9 leave 16."""
    assert SPARE_BATCHES * EAGER.buckets[-1] == 16
    spare = start(world.dispatcher.next_spare_batch)
    world.submit("few", rows=[1.0] * 23)
    first = world.dispatcher.next_batch()
    assert first is not None
    assert (len(first.slots), first.spare) == (8, False)
    assert not world.dispatcher._invited.is_set(), "15 left behind are no reason"
    world.submit("more", rows=[1.0] * 9)
    assert world.dispatcher.next_batch() is not None
    batch = spare.next()
    assert batch is not None
    assert (len(batch.slots), batch.spare) == (8, True)


def test_spare_instance_does_not_invite_itself(world: World) -> None:
    """Each batch of the others invites it once."""
    world.submit("much", rows=[1.0] * 64)
    assert isinstance(world.dispatcher.poll(spare=True), Batch)
    assert not world.dispatcher._invited.is_set()
    assert isinstance(world.dispatcher.poll(), Batch)
    assert world.dispatcher._invited.is_set()


# -- when an instance is free -------------------------------------------------------------------


def free_in_ms(world: World) -> float | None:
    """As published to the front ends; None: an instance is free."""
    at_ns = world.arena.native.free_at_ns(0)
    return (at_ns - world.clock.now_ns()) / MS if at_ns else None


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_when_the_next_instance_is_free_is_published(make_world: MakeWorld, instances: int) -> None:
    """Not while one is idle; then the earliest predicted end of what runs."""
    world = make_world(instances=instances)
    world.latency.seed(0, {1: 2 * MS, 2: 2 * MS, 4: 2 * MS, 8: 7 * MS})
    running = []
    for number in range(instances):
        assert free_in_ms(world) is None
        world.submit(str(number), rows=[1.0] * 8 if number == 0 else [1.0])
        step = world.dispatcher.poll()
        assert isinstance(step, Batch)
        running.append(step)
        world.clock.advance(MS)
    # The long one began first, the next one a millisecond later.
    assert free_in_ms(world) == (6 if instances == 1 else 1 + 2 - instances)
    world.instance.run(running[-1])
    assert free_in_ms(world) is None


def test_what_a_spare_instance_runs_occupies_nobody_else(world: World) -> None:
    """It has no core of its own, and is not counted among them."""
    world.submit("a")
    assert isinstance(world.dispatcher.poll(spare=True), Batch)
    assert free_in_ms(world) is None


def test_what_a_reserved_instance_runs_frees_nobody_else(world: World) -> None:
    """It takes no bulk, so bulk waits for the others, however soon it is done."""
    world.latency.seed(0, {1: 2 * MS, 2: 2 * MS, 4: 2 * MS, 8: 7 * MS})
    world.submit("trade", cls=URGENT)
    trade = world.dispatcher.poll(reserved=True)
    assert isinstance(trade, Batch)
    assert (trade.reserved, free_in_ms(world)) == (True, None)
    world.submit("bulk", rows=[1.0] * 8, cls=BULK)
    bulk = world.dispatcher.poll()
    assert isinstance(bulk, Batch)
    assert (bulk.reserved, free_in_ms(world)) == (False, 7)
    world.instance.run(trade)
    assert free_in_ms(world) == 7
    world.instance.run(bulk)
    assert free_in_ms(world) is None


def test_what_a_reserved_instance_runs_is_learned_from(world: World) -> None:
    """It has a core of its own, as any other but the spare ones."""
    world.latency.seed(0, dict.fromkeys(EAGER.buckets, MS))
    for number in range(WINDOW):
        world.submit(str(number), cls=URGENT)
        batch = world.dispatcher.poll(reserved=True)
        assert isinstance(batch, Batch)
        world.clock.advance(3 * MS)
        world.instance.run(batch)
        world.partition.drain()
    assert world.latency.predict_ns(0, 1) == 3 * MS
