"""The slots of one front end: where rows go, what is outstanding, and that nothing is lost."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.dispatcher import Batch
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array
from scheduler.partition import Outcome, Partition, Submission
from scheduler.policy import BatchPlan
from scheduler.priority import PriorityClass
from tests.scheduler.world import EAGER, MS, SIGNATURE, World

MakeWorld = Callable[..., World]
URGENT = PriorityClass.REAL_TIME_TRADING
BULK = PriorityClass.BACKGROUND_TASKS


def ignore(_: Submission) -> None:
    """For submissions that never end."""


def batch_of(world: World) -> Batch:
    """The batch that goes now, taken and not run."""
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    return batch


# -- slots --------------------------------------------------------------------------------------


def test_slots_are_handed_out_once_and_the_last_one_back_first(world: World) -> None:
    """Each to one submission; the most recently used comes again, as its rows may still be in a cache."""
    partition = world.partition
    first, second = partition.reserve(3, 0, 0, partition.release), partition.reserve(29, 0, 0, ignore)
    assert sorted(first.slots + second.slots) == list(range(32))
    assert partition.free_slots == 0
    used = set(first.slots)
    partition.end_unpushed(first, Outcome.CANCELLED)
    assert first.slots == []
    assert (partition.free_slots, set(partition.reserve(3, 0, 0, ignore).slots)) == (3, used)


def test_free_slots_are_published_as_they_change(world: World) -> None:
    """For whoever watches the service: as they are after every reservation and release."""
    partition, native = world.partition, world.arena.native

    def published() -> int:
        assert native.free_slots(0) == partition.free_slots
        return native.free_slots(0)

    assert published() == 32
    first, second = partition.reserve(3, 0, 0, partition.release), partition.reserve(9, 0, 0, ignore)
    assert published() == 20
    partition.end_unpushed(first, Outcome.CANCELLED)
    assert published() == 23
    partition.end_unpushed(second, Outcome.CANCELLED)
    assert published() == 23, "ended, and not released yet"
    partition.release(second)
    world.submit("a", rows=[1.0] * 4)
    assert published() == 28
    world.run_all()
    assert published() == 32
    world.submit("a too", rows=[1.0] * 4)
    partition.lose_engine(0)
    assert published() == 32


def test_front_end_that_starts_again_has_all_its_slots(world: World) -> None:
    """And says so; what its predecessor had is gone with it."""
    world.submit("a", rows=[1.0] * 4)
    assert world.arena.native.free_slots(0) == 28
    Partition(world.arena, 0, world.frontend_fd, [world.engine_fd])
    assert world.arena.native.free_slots(0) == 32


@pytest.mark.parametrize("rows", [0, -1, 33])
def test_reserving_what_admission_never_lets_in_is_a_bug(world: World, rows: int) -> None:
    """No rows, or more than there are slots."""
    with pytest.raises(AssertionError):
        world.partition.reserve(rows, 0, 0, ignore)


def test_releasing_twice_frees_once(world: World) -> None:
    """The submission forgets its slots."""
    submission = world.partition.reserve(4, 0, 0, world.partition.release)
    world.partition.end_unpushed(submission, Outcome.CANCELLED)
    world.partition.release(submission)
    assert world.partition.free_slots == 32
    world.partition.check_integrity()


@given(rows=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_each_row_of_each_tensor_has_its_own_place(rows: int, seed: int) -> None:
    """Whichever slots the rows have: tensors at their offsets, and no other byte is touched."""
    world = World(slots=16)
    try:
        check_placement(world, rows, seed)
    finally:
        world.close()


def check_placement(world: World, rows: int, seed: int) -> None:
    """Writes two inputs of a submission into scattered slots, reads them back, and reads two outputs."""
    partition, noise = world.partition, np.random.default_rng(seed)
    held = [partition.reserve(1, 0, 0, partition.release) for _ in range(16)]
    random.Random(seed).shuffle(held)
    for submission in held:
        partition.end_unpushed(submission, Outcome.CANCELLED)
    submission = partition.reserve(rows, 0, 0, ignore)

    before = world.arena.input_rows.copy()
    for spec, offset in zip(SIGNATURE.inputs, SIGNATURE.input_offsets, strict=True):
        data = noise.integers(0, 256, (rows, spec.item_bytes), np.uint8)
        partition.write_input(submission, offset, spec.item_bytes, data.tobytes())
        before[submission.slots, offset : offset + spec.item_bytes] = data
        assert partition.input(submission, offset, spec.item_bytes) == data.tobytes()
    np.testing.assert_array_equal(world.arena.input_rows, before)

    world.arena.output_rows[:] = noise.integers(0, 256, world.arena.output_rows.shape, np.uint8)
    for spec, offset in zip(SIGNATURE.outputs, SIGNATURE.output_offsets, strict=True):
        expected = world.arena.output_rows[submission.slots, offset : offset + spec.item_bytes]
        assert partition.output(submission, offset, spec.item_bytes) == expected.tobytes()


def test_partitions_of_one_arena_do_not_meet(make_world: MakeWorld) -> None:
    """The slots of front end 1 follow those of front end 0."""
    from scheduler.arena import Arena, Dimensions

    world = make_world()
    arena = Arena.anonymous(
        Dimensions(frontends=2, models=1, slots_per_frontend=4, input_row_bytes=64, output_row_bytes=64)
    )
    partitions = [Partition(arena, index, world.frontend_fd, [world.engine_fd]) for index in range(2)]
    slots = [partition.reserve(4, 0, 0, ignore).slots for partition in partitions]
    assert [sorted(each) for each in slots] == [[0, 1, 2, 3], [4, 5, 6, 7]]


# -- what is outstanding ------------------------------------------------------------------------


def test_outstanding_is_counted_by_class_until_each_row_is_back(make_world: MakeWorld) -> None:
    """Queued or computing makes no difference; a row that is back no longer counts."""
    world = make_world(plans=[BatchPlan((1, 2), (0,) * 5, None)])
    world.submit("bulk", rows=[1.0, 2.0, 3.0], cls=BULK)
    world.submit("urgent", cls=URGENT)
    assert world.partition.outstanding == [1, 0, 0, 0, 3]
    batch = batch_of(world)  # the urgent one and a row of the bulk
    assert world.partition.outstanding == [1, 0, 0, 0, 3]
    world.instance.run(batch)
    world.partition.drain()
    assert world.partition.outstanding == [0, 0, 0, 0, 2]
    world.partition.check_integrity()
    world.run_all()
    assert world.partition.outstanding == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("outcome", [Outcome.EXPIRED, Outcome.CANCELLED, Outcome.LOST])
def test_what_is_never_pushed_counts_from_its_reservation_and_ends_once(
    make_world: MakeWorld, outcome: Outcome
) -> None:
    """It has slots, so it is outstanding; it is in the books once it has ended, as admitted too."""
    partition = make_world(plans=[EAGER, EAGER]).partition
    ended: list[Submission] = []
    submission = partition.reserve(3, 1, BULK.index, ended.append)
    assert (partition.outstanding[BULK.index], partition.outstanding_by_lane[9]) == (3, 3)
    partition.check_integrity()
    partition.end_unpushed(submission, outcome)
    assert [(each.outcome, each.remaining, len(each.slots)) for each in ended] == [(outcome, 0, 3)]
    assert (partition.outstanding, partition.outstanding_by_lane) == ([0] * 5, [0] * 10)
    books = partition.books()
    assert (books["admitted"], books["ended"][outcome], sum(books["ended"])) == (3, 3, 3)
    partition.release(submission)
    partition.check_integrity()


def test_outstanding_is_counted_by_model_as_well(make_world: MakeWorld) -> None:
    """A model may have a limit of its own in each class."""
    world = make_world(plans=[EAGER, EAGER])
    world.submit("a", rows=[1.0, 2.0], model=0, cls=BULK)
    world.submit("b", rows=[1.0, 2.0, 3.0], model=1, cls=BULK)
    assert world.partition.outstanding == [0, 0, 0, 0, 5]
    assert world.partition.outstanding_by_lane == [0, 0, 0, 0, 2, 0, 0, 0, 0, 3]
    world.run_all()
    assert world.partition.outstanding_by_lane == [0] * 10


def test_what_is_queued_is_weighed_by_the_forecast_of_its_model(make_world: MakeWorld) -> None:
    """By class: items, and the engine time they cost; what is taken is no longer queued."""
    world = make_world(plans=[EAGER, EAGER])
    for model, item_ns in enumerate((2 * MS, 7 * MS)):
        world.port.publish_forecast(model, 8, item_ns, [8], [1], [1], [1])
    world.submit("a", rows=[1.0, 2.0], model=0, cls=BULK)
    world.submit("b", rows=[1.0, 2.0, 3.0], model=1, cls=BULK)
    world.submit("c", model=1)
    assert world.partition.depths(0) == [1, 0, 0, 0, 5]
    assert world.partition.backlog_ns(0) == [7 * MS, 0, 0, 0, 25 * MS]
    batch_of(world)
    assert world.partition.depths(0) == [0, 0, 0, 0, 2]
    assert world.partition.backlog_ns(0) == [0, 0, 0, 0, 4 * MS]


def test_books_count_each_end_once(make_world: MakeWorld) -> None:
    """By outcome; what is open is the rest."""
    world = make_world()
    world.submit("result", rows=[1.0, 2.0])
    world.submit("nan", rows=[float("nan")])
    world.partition.cancel(world.submit("gone"))
    world.submit("late", timeout_ns=MS)
    books = world.partition.books()
    assert (books["admitted"], sum(books["ended"])) == (5, 0)
    world.clock.advance(2 * MS)
    world.run_all()
    world.submit("lost", rows=[1.0, 2.0, 3.0])
    world.partition.lose_engine(0)
    books = world.partition.books()
    assert {outcome: books["ended"][outcome] for outcome in Outcome} == {
        Outcome.RESULT: 2,
        Outcome.ERROR: 0,
        Outcome.NON_FINITE: 1,
        Outcome.EXPIRED: 1,
        Outcome.CANCELLED: 1,
        Outcome.LOST: 3,
    }
    assert books["admitted"] == sum(books["ended"]) == 8


def test_worst_row_decides_and_the_longest_wait_is_told(make_world: MakeWorld) -> None:
    """Of a request over two batches: the batch of the worst row, the size of the one that ended last."""
    world = make_world(plans=[BatchPlan((2,), (0,) * 5, None)])
    submission = world.submit("a", rows=[float("nan"), 1.0, 2.0])
    world.clock.advance(MS)
    first = world.run_once()
    assert first is not None
    assert (submission.outcome, submission.queue_wait_ns, submission.remaining) == (Outcome.NON_FINITE, MS, 1)
    world.clock.advance(4 * MS)
    world.run_all()
    assert world.answers["a"].outcome is Outcome.NON_FINITE
    assert (submission.queue_wait_ns, submission.batch) == (5 * MS, first.number)
    assert (submission.batch_size, submission.batch_bucket) == (1, 2)


def test_cancelling_reaches_only_what_is_still_queued(make_world: MakeWorld) -> None:
    """The first two rows are back, and their slots perhaps somebody else's, when the caller leaves."""
    world = make_world(plans=[BatchPlan((2,), (0,) * 5, None)])
    submission = world.submit("a", rows=[1.0, 2.0, 3.0])
    world.run_once()
    world.partition.cancel(submission)
    assert world.run_all() == []
    assert world.answers["a"].outcome is Outcome.CANCELLED
    assert world.partition.books()["ended"][Outcome.RESULT] == 2
    assert world.partition.books()["ended"][Outcome.CANCELLED] == 1


def test_lost_engine_takes_what_it_had_completed(make_world: MakeWorld) -> None:
    """Of a request that is half done one row has its result; the request as a whole is LOST."""
    world = make_world(plans=[BatchPlan((1,), (0,) * 5, None)])
    world.submit("a", rows=[1.0, 2.0])
    world.instance.run(batch_of(world))
    world.partition.lose_engine(0)
    assert world.answers["a"].outcome is Outcome.LOST
    assert world.partition.books()["ended"][Outcome.RESULT] == 1
    assert world.partition.books()["ended"][Outcome.LOST] == 1
    assert world.partition.free_slots == 32
    world.partition.check_integrity()


# -- the integrity check itself -----------------------------------------------------------------


def lose_an_item(world: World) -> None:
    """It is admitted and nobody waits for it any more."""
    pending = world.partition._pending
    pending[next(slot for slot, submission in enumerate(pending) if submission is not None)] = None


def free_a_slot_twice(world: World) -> None:
    world.partition._free.append(world.partition._free[0])


def free_a_slot_in_use(world: World) -> None:
    world.partition._free.append(31)


def miscount_an_end(world: World) -> None:
    world.partition._port.lose(1)


def miscount_a_class(world: World) -> None:
    world.partition.outstanding[0] -= 1


def miscount_a_lane(world: World) -> None:
    world.partition.outstanding_by_lane[0] += 1


@pytest.mark.parametrize(
    "damage",
    [
        lose_an_item,
        free_a_slot_twice,
        free_a_slot_in_use,
        miscount_an_end,
        miscount_a_class,
        miscount_a_lane,
    ],
)
def test_integrity_check_sees_damage(world: World, damage: Callable[[World], None]) -> None:
    """Fine before, not after."""
    for number in range(32):
        world.submit(str(number))
    for _ in range(3):
        world.run_once()
    world.partition.check_integrity()
    damage(world)
    with pytest.raises(AssertionError):
        world.partition.check_integrity()


def test_integrity_check_sees_a_slot_that_nobody_holds(world: World) -> None:
    """Neither free nor of a submission with rows outstanding: it will never come back."""
    world.submit("a")
    world.partition._free.pop()
    with pytest.raises(AssertionError):
        world.partition.check_integrity()


def test_failed_request_names_the_batch_that_failed(make_world: MakeWorld) -> None:
    """Of three batches the first one raises: its number leads to the cause in the log."""

    def poison(inputs: Sequence[Array]) -> None:
        if (inputs[0] == 666.0).any():
            raise RuntimeError("poison")

    world = make_world(plans=[BatchPlan((1,), (0,) * 5, None)], runners=[FakeRunner(SIGNATURE, poison)])
    submission = world.submit("a", rows=[666.0, 1.0, 2.0])
    world.run_all()
    ((failed, _, _),) = world.failures
    assert world.answers["a"].outcome is Outcome.ERROR
    assert submission.batch == failed.number


def test_completion_of_a_slot_that_nobody_waits_for_is_a_bug(world: World) -> None:
    """Told loudly, instead of ending something else."""
    world.submit("a")
    batch = batch_of(world)
    world.partition._pending[:] = [None] * 32
    world.instance.run(batch)
    with pytest.raises(AssertionError, match="completed but not pending"):
        world.partition.drain()


def test_eager_world_is_what_these_tests_assume() -> None:
    """No class waits for company, and the largest batch has eight items."""
    assert (EAGER.buckets[-1], set(EAGER.max_wait_ns)) == (8, {0})
