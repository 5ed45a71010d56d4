"""From a push to an answer: what is taken when, what it ends as, and what it teaches."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch, SpinBudget
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array
from scheduler.latency import STALE_NS, WINDOW
from scheduler.partition import Outcome
from scheduler.policy import BatchPlan, WaitUntil
from scheduler.priority import PriorityClass
from scheduler.target import TargetSizes
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


def test_item_that_makes_the_model_raise_fails_alone(make_world: Callable[..., World]) -> None:
    """Its batch mates are answered, the engine goes on, and the failure is reported once."""

    def poison(inputs: Sequence[Array]) -> None:
        if (inputs[0] == 666.0).any():
            raise RuntimeError("division by zero")

    world = make_world(runners=[FakeRunner(SIGNATURE, poison)])
    for name, value in (("a", 1.0), ("bad", 666.0), ("b", 2.0), ("c", 3.0)):
        world.submit(name, rows=[value])
    (batch,) = world.run_all()
    world.submit("next", rows=[4.0])
    # The staging rows of the bad batch are overwritten before the next run, so they cannot poison it.
    world.run_all()
    assert world.answers["bad"].outcome is Outcome.ERROR
    assert {name: answer.outputs[0].item() for name, answer in world.answers.items() if name != "bad"} == {
        "a": 1.0,
        "b": 2.0,
        "c": 3.0,
        "next": 4.0,
    }
    ((failed, error, extent),) = world.failures
    assert (failed.number, str(error), extent.guilty) == (batch.number, "division by zero", 1)


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
    world.partition.lose_engine(0)
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
        runners = dict(enumerate(world.runners))
        instance = CpuInstance(world.arena, dispatcher, runners, 8, clock, lambda *_: None)
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
    """Sleeps at first and while waits are longer than half of the limit, else spins for all of it."""
    spin = SpinBudget(limit_ns=1000)
    assert spin.spin_ns() == 0
    spin.waited(100)
    assert spin.spin_ns() == 1000
    spin.waited(10**12)
    assert spin.spin_ns() == 0
    for _ in range(60):
        spin.waited(100)
    assert spin.spin_ns() == 1000
    for _ in range(60):
        spin.waited(502)
    assert spin.spin_ns() == 0


def test_no_spinning_where_it_is_off() -> None:
    """Limit 0 never spins, however short the waits."""
    spin = SpinBudget(limit_ns=0)
    spin.waited(5)
    assert spin.spin_ns() == 0


# -- deadlines ----------------------------------------------------------------------------------


def seeded(world: World, ms: float) -> World:
    """Warm: every bucket takes so long."""
    for model, plan in enumerate(world.plans):
        world.latency.seed(model, dict.fromkeys(plan.buckets, round(ms * MS)))
    world.dispatcher.warm()
    return world


@pytest.mark.parametrize(
    ("early_refusal", "timeout_ms", "outcome"),
    [
        (True, 5, Outcome.RESULT),  # just so
        (True, 4.9, Outcome.EXPIRED),
        (False, 4.9, Outcome.RESULT),  # late, and as asked for
        (False, -1, Outcome.EXPIRED),  # the deadline itself always counts
        (True, -1, Outcome.EXPIRED),
    ],
)
def test_what_would_be_done_too_late_is_dropped_at_the_take(
    make_world: Callable[..., World], early_refusal: bool, timeout_ms: float, outcome: Outcome
) -> None:
    """With a model of 5 ms, unless early refusal is off."""
    world = seeded(make_world(early_refusal=early_refusal), 5)
    world.submit("a", timeout_ns=round(timeout_ms * MS))
    world.run_all()
    assert world.answers["a"].outcome is outcome


@pytest.mark.parametrize(("age_ns", "outcome"), [(0, Outcome.EXPIRED), (STALE_NS, Outcome.RESULT)])
def test_nothing_is_dropped_on_the_word_of_a_stale_prediction(
    world: World, age_ns: int, outcome: Outcome
) -> None:
    """Ten milliseconds, as it was a second ago; at warm-up it was one."""
    seeded(world, 1)
    for _ in range(WINDOW):
        world.latency.observe(0, 1, 10 * MS, world.clock.now_ns())
    world.clock.advance(age_ns)
    world.submit("a", timeout_ns=5 * MS)
    world.run_all()
    assert world.answers["a"].outcome is outcome


def test_a_batch_shrinks_to_keep_the_tightest_deadline_in_it(make_world: Callable[..., World]) -> None:
    """One item has 3 ms left, and a batch of eight would take four."""
    world = make_world()
    world.latency.seed(0, {1: MS, 2: MS, 4: 2 * MS, 8: 4 * MS})
    world.submit("tight", timeout_ns=3 * MS)
    world.submit("others", rows=[1.0] * 7, timeout_ns=50 * MS)
    assert [len(batch.slots) for batch in world.run_all()] == [4, 4]
    assert {answer.outcome for answer in world.answers.values()} == {Outcome.RESULT}


# -- learning -----------------------------------------------------------------------------------


def timed(make_world: Callable[..., World], ms_per_batch: float, **options: object) -> World:
    """Warm at 1 ms; from now on every run takes so long, and raises where a row is 666."""
    clock = VirtualClock(1_000 * MS)

    def run(inputs: Sequence[Array]) -> None:
        clock.advance(round(ms_per_batch * MS))
        if (inputs[0] == 666.0).any():
            raise RuntimeError("poison")

    return seeded(make_world(clock=clock, runners=[FakeRunner(SIGNATURE, run)], **options), 1)


def run_batches(world: World, rows: Sequence[float], *, spare: bool = False) -> None:
    """As many as the latency model remembers."""
    for _ in range(WINDOW):
        world.answers.clear()
        world.submit("a", rows=rows)
        batch = world.dispatcher.poll(spare=spare)
        assert isinstance(batch, Batch)
        world.instance.run(batch)
        world.partition.drain()


def test_batches_teach_the_latency_model(make_world: Callable[..., World]) -> None:
    """From dispatch to outputs ready; the buckets that did not run are taken to have drifted as much."""
    world = timed(make_world, 3)
    world.latency.seed(0, {1: MS, 2: MS, 4: 2 * MS, 8: 4 * MS})
    run_batches(world, [1.0] * 4)
    assert [row.median_ns / MS for row in world.latency.table(0)] == [1.5, 1.5, 3, 6]


@pytest.mark.parametrize(("rows", "spare"), [([1.0], True), ([666.0], False), ([1.0, 666.0], False)])
def test_spare_and_failed_batches_teach_nothing(
    make_world: Callable[..., World], rows: list[float], spare: bool
) -> None:
    """One ran on somebody else's core, the other was run again in parts."""
    world = timed(make_world, 3)
    run_batches(world, rows, spare=spare)
    assert [row.median_ns // MS for row in world.latency.table(0)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("in_parts", "learned_ms"), [(False, 3), (True, 1)])
@pytest.mark.parametrize("outcome", [Outcome.RESULT, Outcome.ERROR, Outcome.NON_FINITE, Outcome.EXPIRED])
def test_who_ran_a_batch_says_whether_it_teaches(
    world: World, outcome: Outcome, in_parts: bool, learned_ms: int
) -> None:
    """Its outcomes do not."""
    seeded(world, 1)
    for number in range(WINDOW):
        world.submit(str(number))
        batch = world.dispatcher.poll()
        assert isinstance(batch, Batch)
        end_ns = batch.dispatched_ns + 3 * MS
        world.dispatcher.complete(batch, np.full(1, outcome, np.uint8), 0, end_ns, in_parts=in_parts)
        world.partition.drain()
    assert world.latency.predict_ns(0, 1) == learned_ms * MS
    assert {answer.outcome for answer in world.answers.values()} == {outcome}


def test_non_finite_rows_are_no_failure_of_the_batch(make_world: Callable[..., World]) -> None:
    """It ran once, as any other."""
    world = timed(make_world, 3)
    run_batches(world, [1.0, float("nan")])
    assert world.latency.predict_ns(0, 2) == 3 * MS


def test_the_target_follows_what_is_learned(make_world: Callable[..., World]) -> None:
    """A budget of 2 ms, and batches that have come to take 3."""
    world = timed(make_world, 3, plans=[BatchPlan((1, 2, 4, 8), (0,) * 5, 2 * MS)])
    assert world.dispatcher.targets.sizes == [8]
    sizes = []
    for number in range(WINDOW):
        world.submit(str(number), rows=[1.0] * 8)
        sizes += [len(batch.slots) for batch in world.run_all()]
    assert sizes[:9] == [8] * 8 + [4]
    assert set(sizes[32:]) == {1}


# -- changes while it runs ----------------------------------------------------------------------


def test_pressure_shrinks_batches_from_the_next_one_on(make_world: Callable[..., World]) -> None:
    """Taken up by whoever leads."""
    world = seeded(make_world(plans=[BatchPlan((1, 2, 4, 8), (0,) * 5, 5 * MS)]), 1)
    world.submit("a", rows=[1.0] * 32)
    sizes = []
    for steps in (0, 1, 9, 0):
        world.dispatcher.shrink_targets(steps)
        batch = world.dispatcher.next_batch()
        assert batch is not None
        sizes.append(len(batch.slots))
    assert sizes == [8, 4, 1, 8]


def test_targets_change_under_the_ledger_only(make_world: Callable[..., World]) -> None:
    """Whoever leads shrinks them, and whoever completes a batch updates them: two threads."""

    class Watched(TargetSizes):
        def shrink(self, steps: int) -> None:
            seen.append(("shrink", world.dispatcher._ledger.locked()))
            super().shrink(steps)

        def update(self, model: int) -> None:
            seen.append(("update", world.dispatcher._ledger.locked()))
            super().update(model)

    seen: list[tuple[str, bool]] = []
    world = seeded(make_world(), 1)
    world.dispatcher.targets = Watched(world.plans, world.latency)
    world.dispatcher.shrink_targets(1)
    world.submit("a")
    batch = world.dispatcher.next_batch()
    assert batch is not None
    world.instance.run(batch)
    assert seen == [("shrink", True), ("update", True)]


def test_a_leader_that_sleeps_takes_up_other_plans(make_world: Callable[..., World]) -> None:
    """It would wait for company for an hour; now it need not."""
    hour_ns = 3_600_000 * MS
    world = make_world(plans=[BatchPlan((1, 2), (hour_ns,) * 5, None)])
    world.submit("a")
    assert world.dispatcher.poll() == WaitUntil(world.clock.now_ns() + hour_ns)
    batches: list[Batch | None] = []
    leader = threading.Thread(target=lambda: batches.append(world.dispatcher.next_batch()), daemon=True)
    leader.start()
    world.dispatcher.replan([BatchPlan((1, 2), (0,) * 5, None)], early_refusal=True)
    leader.join(timeout=10)
    assert [len(batch.slots) for batch in batches if batch] == [1]


def test_whether_hopeless_items_are_dropped_can_change(world: World) -> None:
    """What cannot be done by its deadline is dropped before it is late, or only once it is."""
    world.latency.seed(0, dict.fromkeys(EAGER.buckets, 5 * MS))
    for early_refusal, outcome in ((False, Outcome.RESULT), (True, Outcome.EXPIRED), (False, Outcome.RESULT)):
        world.dispatcher.replan([EAGER], early_refusal=early_refusal)
        world.submit(str(len(world.answers)), timeout_ns=4 * MS)
        world.run_all()
        assert [answer.outcome for answer in world.answers.values()][-1] is outcome


def test_no_batch_is_larger_than_a_limit(world: World) -> None:
    """From the next decision on, until the limit goes."""

    def sizes() -> list[int]:
        for index in range(8):
            world.submit(f"{len(world.answers)}-{index}", [1.0])
        taken = []
        while (batch := world.dispatcher.next_batch()) is not None:
            taken.append(len(batch.slots))
            world.instance.run(batch)
            world.partition.drain()
            if sum(taken) == 8:
                return taken
        raise AssertionError

    assert sizes() == [8]
    world.dispatcher.limit_batches(0, 2)
    assert sizes() == [2, 2, 2, 2]
    world.dispatcher.limit_batches(0, None)
    assert sizes() == [8]


def test_sizes_that_warm_up_found_too_large_are_not_run(world: World) -> None:
    world.dispatcher.warm([replace(EAGER, buckets=(1, 2, 4))])
    for index in range(8):
        world.submit(str(index), [1.0])
    assert [len(batch.slots) for batch in world.run_all()] == [4, 4]
