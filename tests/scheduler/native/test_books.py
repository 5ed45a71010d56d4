"""What the arena counts, and what a supervisor reads from the counts of a process that does not answer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from tests.scheduler.native.native_world import (
    CANCELLED,
    ENGINE,
    ERROR,
    EXPIRED,
    LOST,
    NON_FINITE,
    RESULT,
    NativeWorld,
)


def ends(**counts: int) -> list[int]:
    """A list by outcome, as the books of a front end have it."""
    by_outcome = [0] * (LOST + 1)
    for name, count in counts.items():
        by_outcome[globals()[name.upper()]] = count
    return by_outcome


def outcome_bytes(native: NativeWorld) -> np.ndarray:
    """The outcome in the header of each slot, as a live view; see struct SlotHeader in layout.hpp."""
    start = native.arena.slot_headers
    return native.buffer[start : start + native.arena.slots * 128].reshape(-1, 128)[:, 104]


def completion_tail(native: NativeWorld, frontend: int) -> np.ndarray:
    """Where the engine writes next in the completion ring of a front end, as a live view."""
    header = native.buffer[: native.arena.slot_headers].view(np.uint64)
    before = header.copy()
    native.push(frontend, [native.partition(frontend)[0]])
    native.take()
    taken = header.copy()
    native.complete([native.partition(frontend)[0]])
    (moved,) = np.flatnonzero((header == before + 1) & (taken == before))[:1]
    return header[moved : moved + 1]


def test_front_end_counts_admissions_and_ends_by_outcome(native: NativeWorld) -> None:
    """An end counts when it is drained; a push that is refused or finds no room admits nothing."""
    assert native.arena.frontend_stats(1) == {"admitted": 0, "ended": ends(), "corrupt": 0}
    with pytest.raises(ValueError, match="slot is 3"):
        native.push(1, [4, 3])
    native.push(1, [4, 5, 6, 7])
    assert not native.push(1, [4])
    native.ports[1].cancel(7)
    native.complete(native.take(), [RESULT, ERROR, NON_FINITE])
    assert native.arena.frontend_stats(1) == {"admitted": 4, "ended": ends(), "corrupt": 0}
    native.ports[1].drain()
    ended = ends(result=1, error=1, non_finite=1, cancelled=1)
    assert native.arena.frontend_stats(1) == {"admitted": 4, "ended": ended, "corrupt": 0}
    assert native.arena.frontend_stats(0)["admitted"] == 0


def test_front_end_loses_no_more_than_is_open(native: NativeWorld) -> None:
    """Or the books would have more ends than admissions."""
    native.push(0, [0, 1, 2])
    native.complete(native.take(1))
    native.ports[0].drain()
    with pytest.raises(ValueError, match="count is 3, allowed is 0 to 2"):
        native.ports[0].lose(3)
    native.ports[0].lose(2)
    native.ports[0].lose(0)
    assert native.arena.frontend_stats(0)["ended"] == ends(result=1, lost=2)


@pytest.mark.parametrize("outcome", range(RESULT, LOST + 1))
def test_item_that_ends_before_a_push_was_admitted_and_ended(native: NativeWorld, outcome: int) -> None:
    """Whatever its outcome; nothing is open then, and no engine has seen it."""
    native.ports[0].end_unqueued(3, outcome)
    stats = native.arena.frontend_stats(0)
    assert (stats["admitted"], stats["ended"][outcome], sum(stats["ended"])) == (3, 3, 3)
    assert native.arena.engine_progress(ENGINE) == (0, 0)
    for wrong in (0, LOST + 1):
        with pytest.raises(ValueError, match=f"outcome is {wrong}, allowed is 1 to 6"):
            native.ports[0].end_unqueued(1, wrong)
    assert native.arena.frontend_stats(0) == stats


def queued(native: NativeWorld) -> None:
    native.push(0, [0])


def in_a_batch(native: NativeWorld) -> None:
    queued(native)
    assert native.take() == [0]


def completed(native: NativeWorld) -> None:
    in_a_batch(native)
    native.complete([0])


def drained(native: NativeWorld) -> None:
    completed(native)
    assert len(native.ports[0].drain()) == 1


@pytest.mark.parametrize(
    ("reach", "ended"),
    [
        (queued, ends(lost=1)),
        (in_a_batch, ends(lost=1)),
        (completed, ends(lost=1)),
        (drained, ends(result=1)),
    ],
)
def test_reset_ends_what_died_with_a_front_end(
    native: NativeWorld, reach: Callable[[NativeWorld], None], ended: list[int]
) -> None:
    """Whatever had become of the item. The books go on where they stood, and a second reset adds nothing."""
    reach(native)
    native.engine.discard(0)
    if reach is in_a_batch:
        native.complete([0])
    for _ in range(2):
        native.arena.reset_frontend(0)
        assert native.arena.frontend_stats(0) == {"admitted": 1, "ended": ended, "corrupt": 0}
    native.ports[0] = native.new_frontend(0)
    native.push(0, [0, 1])
    assert native.arena.frontend_stats(0) == {"admitted": 3, "ended": ended, "corrupt": 0}


@pytest.mark.parametrize(
    ("reach", "taken", "done", "lost"),
    [(queued, 0, 0, 0), (in_a_batch, 1, 0, 1), (completed, 1, 1, 0), (drained, 1, 1, 0)],
)
def test_reset_counts_what_died_in_the_batches_of_an_engine(
    native: NativeWorld, reach: Callable[[NativeWorld], None], taken: int, done: int, lost: int
) -> None:
    """taken == completed + in batches + lost, with nothing in batches after a reset."""
    reach(native)
    for _ in range(2):
        native.arena.reset_engine(ENGINE)
        stats = native.arena.engine_stats(ENGINE)
        assert (stats["taken"], stats["completed"], stats["lost"]) == (taken, done, lost)
    native.engine = native.new_engine()
    native.push(0, [1])
    native.take()
    stats = native.arena.engine_stats(ENGINE)
    assert stats["taken"] - stats["completed"] - stats["lost"] == 1


def test_item_handed_back_expired_or_cancelled_was_completed(native: NativeWorld) -> None:
    """The executor may give up on an item of a batch; one that ended before it was taken is none of these."""
    native.push(0, [0, 1, 2])
    native.ports[0].cancel(0)
    native.complete(native.take(), [EXPIRED, CANCELLED])
    stats = native.arena.engine_stats(ENGINE)
    assert (stats["taken"], stats["completed"]) == (2, 2)
    assert stats["ended"] == ends(expired=1, cancelled=2)[:LOST]


@pytest.mark.parametrize("outcome", [0, LOST, 255])
def test_outcome_that_is_none_is_an_error_and_counted(native: NativeWorld, outcome: int) -> None:
    """The number comes from shared memory; it must not end as an index somewhere."""
    completed(native)
    assert outcome_bytes(native)[0] == RESULT
    outcome_bytes(native)[0] = outcome
    assert [end[:2] for end in native.ports[0].drain()] == [(0, ERROR)]
    assert native.arena.frontend_stats(0) == {"admitted": 1, "ended": ends(error=1), "corrupt": 1}


def test_completion_ring_that_makes_no_sense_is_counted(native: NativeWorld) -> None:
    """Nothing is drained from it, and the supervisor sees no completion in it either."""
    tail = completion_tail(native, 1)
    assert native.arena.frontend_progress(1) == (1, 0)
    tail[0] += 100
    assert native.arena.frontend_progress(1) == (0, 0)
    assert native.ports[1].drain() == []
    assert native.arena.frontend_stats(1)["corrupt"] == 1
    native.arena.reset_frontend(1)
    assert native.arena.frontend_stats(1) == {"admitted": 1, "ended": ends(lost=1), "corrupt": 1}


def test_stalled_engine_has_work_and_takes_no_step(native: NativeWorld) -> None:
    """Queued or in a batch; its looks are a step as long as no batch could be the one that hangs."""
    progress = native.arena.engine_progress
    assert progress(ENGINE) == (0, 0)
    native.push(0, [0, 1])
    native.push(1, [4], cls=3)
    assert progress(ENGINE) == (3, 0)
    native.engine.look()
    waiting, looked = progress(ENGINE)
    assert (waiting, looked != 0) == (3, True)
    native.take(2)
    waiting, running = progress(ENGINE)
    assert waiting == 3
    native.engine.look()
    native.push(1, [5], cls=3)
    assert progress(ENGINE) == (4, running)


@pytest.mark.parametrize("step", ["take", "complete", "expire", "cancel", "discard"])
def test_every_step_of_an_engine_shows(native: NativeWorld, step: str) -> None:
    """Also when it takes nothing because all that was queued had ended."""
    deadline_ns = 5 if step == "expire" else _ring.NO_DEADLINE
    native.push(1, [4])
    native.take()
    native.ports[0].push(ENGINE, 0, 0, [0], 1, 1, deadline_ns, 1, False)
    if step == "cancel":
        native.ports[0].cancel(0)
    waiting, before = native.arena.engine_progress(ENGINE)
    assert waiting == 2
    if step == "complete":
        native.complete([4])
        native.push(1, [4])
        native.take(1)  # so that a batch runs before and after
    elif step == "discard":
        assert native.engine.discard(0) == 1
    else:
        assert native.take(now_ns=10) == ([0] if step == "take" else [])
    waiting, after = native.arena.engine_progress(ENGINE)
    assert waiting == (2 if step in ("take", "complete") else 1)
    assert after != before


def test_stalled_front_end_leaves_its_completions(native: NativeWorld) -> None:
    """What it has not drained is counted, and its position moves when it drains."""
    native.push(0, [0, 1, 2])
    native.complete(native.take(2))
    assert native.arena.frontend_progress(0) == (2, 0)
    native.complete(native.take())
    assert native.arena.frontend_progress(0) == (3, 0)
    native.ports[0].drain()
    assert native.arena.frontend_progress(0) == (0, 3)
    assert native.arena.frontend_progress(1) == (0, 0)


def test_deadlines_are_copied_in_the_order_of_the_slots(native: NativeWorld) -> None:
    """NO_DEADLINE for an item without one."""
    native.ports[1].push(ENGINE, 0, 0, [6, 4], 1, 1, 777, 1, False)
    native.push(0, [2])
    into = np.zeros(3, np.uint64)
    native.arena.deadlines(np.array([4, 2, 6], np.uint32), into)
    assert into.tolist() == [777, _ring.NO_DEADLINE, 777]


def test_deadlines_that_do_not_fit_are_refused_before_any_is_copied(native: NativeWorld) -> None:
    """A slot outside the arena, a list of another length, an array that would need a copy."""
    native.ports[0].push(ENGINE, 0, 0, [0], 1, 1, 777, 1, False)
    into = np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="slot is 8, allowed is 0 to 7"):
        native.arena.deadlines(np.array([0, 8], np.uint32), into)
    with pytest.raises(ValueError, match="into is 2, allowed is 1 to 1"):
        native.arena.deadlines(np.array([0], np.uint32), into)
    copied: list[Any] = [np.zeros(2, np.int64), np.zeros(4, np.uint64)[::2]]
    for wrong in copied:
        with pytest.raises(TypeError):
            native.arena.deadlines(np.array([0, 1], np.uint32), wrong)
    assert not into.any()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("frontend is 2", lambda native: native.arena.frontend_stats(2)),
        ("frontend is 2", lambda native: native.arena.frontend_progress(2)),
        ("frontend is 2", lambda native: native.arena.free_slots(2)),
        ("engine is 1", lambda native: native.arena.engine_progress(1)),
        ("engine is 1", lambda native: native.arena.depth(1, 0, 0)),
        ("model is 1", lambda native: native.arena.depth(0, 1, 0)),
        ("class is 5", lambda native: native.arena.depth(0, 0, 5)),
        ("engine is 1", lambda native: native.ports[0].depths(1)),
        ("engine is 1", lambda native: native.ports[0].backlog_ns(1)),
        ("engine is 1", lambda native: native.arena.forecast(1, 0)),
        ("model is 1", lambda native: native.arena.forecast(0, 1)),
        ("engine is 1", lambda native: native.arena.free_at_ns(1)),
    ],
)
def test_reading_of_an_unknown_end_is_refused(
    native: NativeWorld, message: str, call: Callable[[NativeWorld], object]
) -> None:
    """With its number and what is allowed."""
    with pytest.raises(ValueError, match=f"^{message}, allowed is 0 to "):
        call(native)
