"""What is counted of requests and batches, as Python writes and reads it."""

from collections.abc import Callable, Iterator

import pytest

from scheduler import _ring
from tests.scheduler.native.native_world import ENGINE, NativeWorld

MS = 1_000_000
TRACE = bytes(range(16))


@pytest.fixture
def native() -> Iterator[NativeWorld]:
    world = NativeWorld(models=3)
    yield world
    world.close()


def bucket_of(ns: int) -> int:
    """By the definition: the first whose bound is at least that."""
    bounds = _ring.duration_bounds_ns()
    return next((i for i, bound in enumerate(bounds) if ns <= bound), len(bounds))


def test_requests_are_told_as_they_were_counted(native: NativeWorld) -> None:
    """Of two front ends together; what is of another model or class is not among them."""
    recorders = [_ring.RequestRecorder(native.arena, frontend) for frontend in range(2)]
    recorders[0].ended(2, 4, 0, 3 * MS, MS)
    recorders[1].ended(2, 4, 13, 60_000 * MS, 0)
    recorders[1].refused(2, 4, 8, 7)
    recorders[1].refused(2, 4, 3, _ring.NO_REASON)
    recorders[1].ended(2, 3, 0, MS, MS)
    found = native.arena.request_counts(2, 4)
    assert {code: count for code, count in enumerate(found["codes"]) if count} == {0: 1, 13: 1, 8: 1, 3: 1}
    assert (len(found["codes"]), found["shed"]) == (_ring.CODES, [0] * (_ring.REASONS - 1) + [1])
    assert len(found["request"]) == len(_ring.duration_bounds_ns()) + 1
    assert {at for at, count in enumerate(found["request"]) if count} == {
        bucket_of(3 * MS),
        bucket_of(60_000 * MS),
    }
    assert (found["request_ns"], found["queue_wait_ns"]) == (60_003 * MS, MS)
    assert (sum(found["queue_wait"]), found["queue_wait"][0]) == (2, 1)
    assert found["exemplars"] == []


def test_trace_id_comes_back_as_it_was(native: NativeWorld) -> None:
    """With the duration and the time, at the bucket of its duration."""
    recorder = _ring.RequestRecorder(native.arena, 1)
    recorder.exemplar(0, _ring.NO_CLASS, 3 * MS, TRACE, 7)
    recorder.exemplar(0, _ring.NO_CLASS, 90_000 * MS, b"\xff" * 16, 2**63)
    assert native.arena.request_counts(0, _ring.NO_CLASS)["exemplars"] == [
        (bucket_of(3 * MS), TRACE, 3 * MS, 7),
        (bucket_of(90_000 * MS), b"\xff" * 16, 90_000 * MS, 2**63),
    ]


def test_batches_are_told_by_the_bucket_that_they_had(native: NativeWorld) -> None:
    """In the order in which the buckets were first used; 0 rows and a clock that goes back are no error."""
    native.engine.count_batch(1, 3, 4, 2 * MS)
    native.engine.count_batch(1, 0, 2, -5)
    native.engine.count_batch(1, 4, 4, 2 * MS)
    found = native.arena.batch_counts(1)
    assert (sum(found["sizes"]), found["rows"], found["padding"]) == (3, 7, 3)
    assert [(bucket, sum(counts), total_ns) for bucket, counts, total_ns in found["compute"]] == [
        (4, 2, 4 * MS),
        (2, 1, 0),
    ]
    assert native.arena.batch_counts(0)["compute"] == []


def test_batches_of_a_model_are_counted_in_its_row(native: NativeWorld) -> None:
    """As the engine was told; a model that it was told nothing of has the row of its own number."""
    port = _ring.EnginePort(
        native.arena, ENGINE, native.engine_fd, native.frontend_fds, rows=[_ring.OTHER_MODELS, 0]
    )
    for model in range(3):
        port.count_batch(model, 1 + model, 4, 1)
    rows = {row: native.arena.batch_counts(row)["rows"] for row in (0, 1, 2, _ring.OTHER_MODELS)}
    assert rows == {0: 2, 1: 0, 2: 3, _ring.OTHER_MODELS: 1}


def test_what_is_there_is_what_was_published_last(native: NativeWorld) -> None:
    """Held items add up over front ends; batches in flight are those of one engine."""
    native.ports[0].publish_held(2, 4, 5)
    native.ports[0].publish_held(2, 4, 3)
    native.ports[1].publish_held(2, 4, 1)
    assert [native.arena.held(2, cls) for cls in range(_ring.CLASSES)] == [0, 0, 0, 0, 4]
    assert native.arena.held(1, 4) == 0
    native.engine.publish_in_flight(2)
    assert native.arena.in_flight(ENGINE) == 2


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("frontend is 2, allowed is 0 to 1", lambda it: _ring.RequestRecorder(it.arena, 2)),
        ("row is 66, allowed is 0 to 65", lambda it: it.arena.request_counts(66, 0)),
        ("class is 6, allowed is 0 to 5", lambda it: it.arena.request_counts(0, 6)),
        ("row is 65, allowed is 0 to 64", lambda it: it.arena.batch_counts(65)),
        ("model is 3, allowed is 0 to 2", lambda it: it.arena.held(3, 0)),
        ("class is 5, allowed is 0 to 4", lambda it: it.arena.held(0, 5)),
        ("engine is 1, allowed is 0 to 0", lambda it: it.arena.in_flight(1)),
        ("bucket is 0, allowed is 1 to", lambda it: it.engine.count_batch(0, 1, 0, 1)),
        ("model is 3, allowed is 0 to 2", lambda it: it.engine.count_batch(3, 1, 1, 1)),
        ("model is 3, allowed is 0 to 2", lambda it: it.ports[0].publish_held(3, 0, 1)),
        (
            "trace id bytes is 15, allowed is 16 to 16",
            lambda it: _ring.RequestRecorder(it.arena, 0).exemplar(0, 0, 1, TRACE[1:], 1),
        ),
        (
            "code is 17, allowed is 0 to 16",
            lambda it: _ring.RequestRecorder(it.arena, 0).ended(0, 0, 17, 1, 1),
        ),
        ("reason is 9, allowed is 0 to 8", lambda it: _ring.RequestRecorder(it.arena, 0).refused(0, 0, 0, 9)),
        (
            "row is 65, allowed is 0 to 64",
            lambda it: _ring.EnginePort(it.arena, 0, it.engine_fd, it.frontend_fds, rows=[65]),
        ),
        (
            "rows is 4, allowed is 0 to 3",
            lambda it: _ring.EnginePort(it.arena, 0, it.engine_fd, it.frontend_fds, rows=[0] * 4),
        ),
    ],
)
def test_what_is_outside_is_named(
    native: NativeWorld, message: str, call: Callable[[NativeWorld], object]
) -> None:
    """With its value and what is allowed."""
    with pytest.raises(ValueError, match=f"^{message}"):
        call(native)
