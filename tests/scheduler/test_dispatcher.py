import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from scheduler.dispatcher import Batch, SpinBudget
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array
from scheduler.partition import Outcome
from scheduler.policy import BatchPlan, WaitUntil
from scheduler.priority import PriorityClass
from tests.scheduler.world import EAGER, MS, SIGNATURE, World

BULK = PriorityClass.BACKGROUND_TASKS
URGENT = PriorityClass.REAL_TIME_TRADING


def test_request_comes_back_with_its_outputs(world: World) -> None:
    """Every output of every row, in row order."""
    world.submit("a", rows=[3.0, -1.0])
    world.clock.advance(2 * MS)
    (batch,) = world.run_all()
    answer = world.answers["a"]
    assert answer.outcome is Outcome.RESULT
    assert (answer.wait_ns, answer.batch_size, batch.bucket) == (2 * MS, 2, 2)
    np.testing.assert_array_equal(answer.outputs[0], [[3.0], [-1.0]])
    np.testing.assert_array_equal(answer.outputs[1][1], np.full((2, 3), -1.0))


def test_urgent_overtakes_bulk_within_the_aging_horizon(make_world: Callable[..., World]) -> None:
    """Slack 2 s against 0: an urgent item 1.9 s later goes first, one 2.1 s later does not."""
    world = make_world(plans=[BatchPlan((1,), (0,) * 5, None)])
    for arrival_ms, first in ((1900, "urgent"), (2100, "bulk")):
        world.answers.clear()
        world.submit("bulk", cls=BULK)
        world.clock.advance(arrival_ms * MS)
        world.submit("urgent", cls=URGENT)
        world.run_once()
        assert list(world.answers) == [first]
        world.run_all()


def test_big_request_is_split_over_batches_and_answered_once(world: World) -> None:
    """20 rows through batches of at most 8."""
    world.submit("big", rows=list(range(20)))
    batches = world.run_all()
    assert [len(batch.slots) for batch in batches] == [8, 8, 4]
    np.testing.assert_array_equal(world.answers["big"].outputs[0][:, 0], np.arange(20))


def test_expired_item_never_reaches_the_runner(make_world: Callable[..., World]) -> None:
    """It ends EXPIRED at the take; its batch mate is computed."""
    seen: list[Array] = []
    world = make_world(runners=[FakeRunner(SIGNATURE, lambda inputs: seen.append(inputs[0].copy()))])
    world.submit("late", rows=[7.0], timeout_ns=1 * MS)
    world.submit("fine", rows=[8.0], timeout_ns=9 * MS)
    world.clock.advance(2 * MS)
    world.run_all()
    assert world.answers["late"].outcome is Outcome.EXPIRED
    assert world.answers["late"].wait_ns == 2 * MS
    assert world.answers["fine"].outcome is Outcome.RESULT
    assert [batch[0, 0] for batch in seen] == [8.0]


def test_cancelled_item_never_reaches_the_runner(make_world: Callable[..., World]) -> None:
    """It ends CANCELLED and frees its slot, also when nothing else is queued."""
    runs: list[int] = []
    world = make_world(runners=[FakeRunner(SIGNATURE, lambda inputs: runs.append(len(inputs[0])))])
    submission = world.submit("gone")
    world.partition.cancel(submission)
    assert world.run_once() is None
    assert world.answers["gone"].outcome is Outcome.CANCELLED
    assert runs == []
    assert world.partition.free_slots == 32


def test_cancel_after_the_take_changes_nothing(world: World) -> None:
    """A computed result still comes back and frees the slot."""
    submission = world.submit("a")
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    world.partition.cancel(submission)
    world.instance.run(batch)
    world.partition.drain()
    assert world.answers["a"].outcome is Outcome.RESULT


def test_batch_that_raises_fails_its_items_and_nobody_else(make_world: Callable[..., World]) -> None:
    """The engine goes on; the failure is reported once, with its batch."""

    def poison(inputs: Sequence[Array]) -> None:
        if (inputs[0] == 666.0).any():
            raise RuntimeError("division by zero")

    world = make_world(runners=[FakeRunner(SIGNATURE, poison)])
    world.submit("bad", rows=[666.0])
    world.run_all()
    world.submit("good", rows=[1.0])
    # The staging row of the bad batch is overwritten before the next run, so it cannot poison it.
    world.run_all()
    assert world.answers["bad"].outcome is Outcome.ERROR
    assert world.answers["good"].outcome is Outcome.RESULT
    assert [str(error) for _, error in world.failures] == ["division by zero"]


def test_non_finite_output_fails_its_item_alone(world: World) -> None:
    """One row in four answers NaN."""
    for index, value in enumerate([1.0, float("nan"), 2.0, 3.0]):
        world.submit(f"row{index}", rows=[value])
    (batch,) = world.run_all()
    assert len(batch.slots) == 4
    outcomes = [world.answers[f"row{index}"].outcome for index in range(4)]
    assert outcomes == [Outcome.RESULT, Outcome.NON_FINITE, Outcome.RESULT, Outcome.RESULT]


def test_exclusive_request_shares_no_batch(world: World) -> None:
    """`bypass_batching`: its rows run together, and with nobody else's."""
    world.submit("a")
    world.submit("alone", rows=[1.0, 2.0], exclusive=True)
    world.submit("b")
    batches = world.run_all()
    assert [len(batch.slots) for batch in batches] == [1, 2, 1]


def test_lost_engine_ends_everything_once(world: World) -> None:
    """Queued and computing items end LOST, completed ones keep their result; all slots are free."""
    world.submit("done")
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    world.instance.run(batch)  # completed, not drained yet
    world.submit("computing", rows=[1.0, 2.0])
    assert isinstance(world.dispatcher.poll(), Batch)
    world.submit("queued")
    world.partition.lose_engine()
    assert {name: answer.outcome for name, answer in world.answers.items()} == {
        "done": Outcome.RESULT,
        "computing": Outcome.LOST,
        "queued": Outcome.LOST,
    }
    world.partition.check_integrity()
    assert world.partition.free_slots == 32


def test_discard_waits_for_batches_that_hold_the_slots(world: World) -> None:
    """A dead front end's partition may be reset only when no batch runs on its rows."""
    world.submit("computing")
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    world.submit("queued")
    done: list[str] = []
    world.dispatcher._discard(0, lambda: done.append("done"))
    assert world.dispatcher.poll() == WaitUntil(None)  # what was queued is gone
    assert done == []
    world.instance.run(batch)
    assert done == ["done"]


def test_stop_ends_a_blocked_instance(world: World) -> None:
    """Threads that wait for work return None."""
    results: list[Batch | None] = []
    threads = [
        threading.Thread(target=lambda: results.append(world.dispatcher.next_batch())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    world.dispatcher.stop()
    for thread in threads:
        thread.join(timeout=10)
    assert results == [None, None, None]


def test_threads_share_the_work_and_every_item_ends_once(make_world: Callable[..., World]) -> None:
    """Three instances, real threads: 400 requests, each answered exactly once and correctly."""
    from scheduler.clock import MonotonicClock
    from scheduler.dispatcher import Dispatcher
    from scheduler.executor.cpu import CpuInstance

    world = make_world(slots=64)
    clock = MonotonicClock()
    dispatcher = Dispatcher(world.port, [EAGER], world.latency, clock)

    def work() -> None:
        instance = CpuInstance(world.arena, dispatcher, world.runners, 8, clock, lambda *_: None)
        while (batch := dispatcher.next_batch()) is not None:
            instance.run(batch)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    sent = 0
    while len(world.answers) < 400:
        while sent < 400 and world.partition.free_slots:
            world.submit(str(sent), rows=[float(sent)])
            sent += 1
        world.partition.drain()
    dispatcher.stop()
    for thread in threads:
        thread.join(timeout=10)
    for name, answer in world.answers.items():
        assert answer.outcome is Outcome.RESULT
        assert answer.outputs[0][0, 0] == float(name)
    world.partition.check_integrity()


def test_completing_a_batch_twice_is_a_bug(world: World) -> None:
    """Exactly once: the second completion is refused loudly."""
    world.submit("a")
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    world.instance.run(batch)
    with pytest.raises(KeyError, match="completed twice"):
        world.dispatcher.complete(batch, np.ones(1, dtype=np.uint8), 0, 0)


def test_spinning_pays_only_while_waits_are_short() -> None:
    """Sleeps at first and after long waits, spins twice the mean after short ones."""
    spin = SpinBudget(limit_ns=1000)
    assert spin.spin_ns() == 0
    spin.waited(100)
    assert spin.spin_ns() == 200
    spin.waited(10**12)
    assert spin.spin_ns() == 0
    for _ in range(60):
        spin.waited(100)
    assert 200 <= spin.spin_ns() < 220


def test_no_spinning_where_it_is_off() -> None:
    """Limit 0 never spins, however short the waits."""
    spin = SpinBudget(limit_ns=0)
    spin.waited(5)
    assert spin.spin_ns() == 0


def test_spare_instance_is_invited_when_enough_is_left_behind(make_world: Callable[..., World]) -> None:
    """With target 8: 31 queued leave 23 behind the first batch, and then 31 - 8 + 9 leave 24."""
    world = make_world(slots=64)
    taken: list[Batch | None] = []
    spare = threading.Thread(target=lambda: taken.append(world.dispatcher.next_spare_batch()))
    spare.start()
    world.submit("few", rows=[1.0] * 31)
    first = world.dispatcher.next_batch()
    assert first is not None
    assert len(first.slots) == 8
    assert spare.is_alive(), "23 left behind are no reason"
    world.submit("more", rows=[1.0] * 9)
    second = world.dispatcher.next_batch()
    assert second is not None
    spare.join(timeout=10)
    assert [len(batch.slots) for batch in taken if batch] == [8]


def test_stop_ends_a_spare_instance_that_was_never_invited(world: World) -> None:
    """It does not wait for an invitation that cannot come."""
    results: list[Batch | None] = []
    spare = threading.Thread(target=lambda: results.append(world.dispatcher.next_spare_batch()))
    spare.start()
    world.dispatcher.stop()
    spare.join(timeout=10)
    assert results == [None]
