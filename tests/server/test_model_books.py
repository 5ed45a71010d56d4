"""What is counted of each model, by several front ends, across their deaths."""

import os
from collections.abc import Callable

import pytest

from scheduler.arena import Arena, Dimensions
from scheduler.partition import Outcome, Submission
from server.model_books import ModelBooks
from tests.server.world import FrontEnd, request


@pytest.fixture
def arena() -> Arena:
    """Of three front ends and two models."""
    return Arena.anonymous(
        Dimensions(frontends=3, models=2, slots_per_frontend=4, input_row_bytes=64, output_row_bytes=64)
    )


def ended(
    model: int = 0, rows: int = 1, outcome: Outcome = Outcome.RESULT, executions: float = 1.0
) -> Submission:
    """One that waited 10, computed 200 and was done at 1000 ns."""
    submission = Submission(list(range(rows)), lambda _: None, model, 0, outcome=outcome)
    submission.queue_wait_ns, submission.compute_ns, submission.compute_end_ns = 10, 200, 1000
    submission.executions = executions
    return submission


def test_sums_are_the_same_whoever_is_asked(arena: Arena) -> None:
    """Of all front ends, by model."""
    everyone = [ModelBooks(arena, frontend) for frontend in range(3)]
    for books in everyone:
        books.ended(ended(model=1, rows=2), arrived_ns=700, now_ns=1003)
    everyone[2].ended(ended(model=0), arrived_ns=0, now_ns=2000)
    for books in everyone:
        totals = books.totals(1)
        assert (totals.success, totals.success_ns, totals.rows, totals.executions) == (3, 909, 6, 3)
        assert (totals.queue_ns, totals.compute_ns, totals.delivery_ns) == (30, 600, 9)
        assert (totals.fail, books.totals(0).success) == (0, 1)
        assert totals.last_ms > 0


def test_books_outlive_their_front_end(arena: Arena) -> None:
    """The next one at its place goes on with them."""
    ModelBooks(arena, 1).ended(ended(), arrived_ns=0, now_ns=1000)
    successor = ModelBooks(arena, 1)
    successor.ended(ended(), arrived_ns=0, now_ns=1000)
    assert successor.totals(0).success == 2


def test_other_processes_see_them() -> None:
    """They are in the arena's own memory."""
    arena, fd = Arena.create(
        Dimensions(frontends=2, models=1, slots_per_frontend=4, input_row_bytes=64, output_row_bytes=64)
    )
    other = Arena.attach(fd)
    os.close(fd)
    ModelBooks(arena, 1).ended(ended(), arrived_ns=0, now_ns=1000)
    assert ModelBooks(other, 0).totals(0).success == 1
    assert not arena.output_rows.any()


@pytest.mark.parametrize("outcome", [member for member in Outcome if member is not Outcome.RESULT])
def test_every_other_end_is_a_failure(arena: Arena, outcome: Outcome) -> None:
    """Only its duration is counted beside it, and the part of a batch that it took."""
    books = ModelBooks(arena, 0)
    books.ended(ended(outcome=outcome, executions=0.0), arrived_ns=100, now_ns=400)
    totals = books.totals(0)
    assert (totals.fail, totals.fail_ns) == (1, 300)
    assert (totals.success, totals.rows, totals.queue_ns, totals.executions, totals.last_ms) == (0,) * 5


@pytest.mark.parametrize(("size", "batches"), [(1, 100), (3, 100), (7, 100), (1000, 1)])
def test_rows_of_a_batch_make_one_execution(arena: Arena, size: int, batches: int) -> None:
    """Whichever front ends they come from."""
    everyone = [ModelBooks(arena, frontend) for frontend in range(3)]
    for row in range(size * batches):
        everyone[row % 3].ended(ended(executions=1 / size), arrived_ns=0, now_ns=1000)
    assert everyone[0].totals(0).executions == batches


def test_requests_are_counted_as_they_end(make_front_end: Callable[..., FrontEnd]) -> None:
    """Five rows of two requests in two batches; one fails; one is cancelled and never runs."""
    front_end = make_front_end()
    front_end.submit(request(3))
    front_end.submit(request(2))
    front_end.complete(Outcome.RESULT, count=4)
    front_end.complete(Outcome.ERROR, count=4)
    front_end.submit(request(1)).cancel()
    front_end.complete(Outcome.RESULT)
    totals = front_end.books.totals(0)
    assert (totals.success, totals.fail, totals.rows, totals.executions) == (1, 2, 3, 2)
    assert totals.success_ns >= totals.queue_ns > 0
    assert totals.compute_ns == 20
