"""A front end looks for answers while few rows are out, and sleeps otherwise."""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from scheduler.partition import Outcome
from server.spinning import MOST_ROWS, Spin
from tests.server.world import FrontEnd

LIMIT_NS = 2_000_000_000  # what happens within is not a matter of a slow machine
MS = 1_000_000


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    made = FrontEnd()
    yield made
    made.close()


async def spin_of(front_end: FrontEnd, limit_ns: int = LIMIT_NS) -> Spin:
    """As a front end has it: asleep at its eventfd."""

    def deliver(completed: Callable[[], object]) -> None:
        completed()

    spin = Spin(front_end.partition, deliver)
    spin.limit_ns = limit_ns
    front_end.partition.on_push, front_end.partition.on_ended = spin.pushed, spin.ended
    asyncio.get_running_loop().add_reader(front_end.frontend_fd, front_end.partition.woken)
    front_end.partition.woken()
    return spin


def engine_completes(front_end: FrontEnd) -> None:
    """All that is queued, without the front end hearing of it."""
    slots = np.empty(8, np.uint32)
    now_ns = _ring.now_ns()
    taken = front_end.engine.take(0, now_ns, 0, slots)
    outcomes = np.full(taken, Outcome.RESULT, np.uint8)
    front_end.engine.complete(slots[:taken], outcomes, now_ns, now_ns + 10, now_ns + 20, 7, 8)


def was_rung(front_end: FrontEnd) -> bool:
    """Whether an engine has written to the eventfd."""
    try:
        return os.eventfd_read(front_end.frontend_fd) > 0
    except BlockingIOError:
        return False


async def rounds(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_answer_is_found_without_a_wake_up(front_end: FrontEnd) -> None:
    await spin_of(front_end)
    front_end.submit()
    engine_completes(front_end)
    assert not was_rung(front_end)
    await rounds()
    assert len(front_end.answers) == 1
    front_end.partition.check_integrity()


async def test_it_sleeps_once_nothing_is_out(front_end: FrontEnd) -> None:
    """And is rung for what comes then: by a row that was submitted while it did not spin."""
    spin = await spin_of(front_end)
    front_end.submit()
    engine_completes(front_end)
    await rounds()
    spin.limit_ns = 0
    front_end.submit()
    engine_completes(front_end)
    assert was_rung(front_end)


async def test_it_sleeps_after_a_while(front_end: FrontEnd) -> None:
    await spin_of(front_end, limit_ns=20 * MS)
    front_end.submit()
    await asyncio.sleep(0.1)
    engine_completes(front_end)
    assert was_rung(front_end)


@pytest.mark.parametrize(("rows", "spins"), [(1, True), (MOST_ROWS, True), (MOST_ROWS + 1, False)])
async def test_with_many_rows_out_it_waits_to_be_woken(front_end: FrontEnd, rows: int, spins: bool) -> None:
    await spin_of(front_end)
    for _ in range(rows):
        front_end.submit()
    await rounds(1)
    engine_completes(front_end)
    assert was_rung(front_end) is not spins


async def test_engine_that_is_slow_is_not_waited_for(front_end: FrontEnd) -> None:
    """Where answers have come late lately, and again once they come soon."""
    spin = await spin_of(front_end, limit_ns=20 * MS)
    for _ in range(10):
        front_end.submit()
        await asyncio.sleep(0.05)
        engine_completes(front_end)
        await asyncio.sleep(0.01)
    front_end.submit()
    engine_completes(front_end)
    assert was_rung(front_end)
    front_end.partition.woken()
    spin.limit_ns = LIMIT_NS
    front_end.submit()
    engine_completes(front_end)
    assert not was_rung(front_end)


async def test_it_can_be_switched_off(front_end: FrontEnd) -> None:
    await spin_of(front_end, limit_ns=0)
    front_end.submit()
    engine_completes(front_end)
    assert was_rung(front_end)


async def test_other_work_of_the_loop_goes_on(front_end: FrontEnd) -> None:
    await spin_of(front_end)
    front_end.submit()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while turns < 100:
            turns += 1
            await asyncio.sleep(0)

    await asyncio.wait_for(other(), 5)
    engine_completes(front_end)
    await rounds()
    assert len(front_end.answers) == 1


async def test_cancelled_row_ends_it_too(front_end: FrontEnd) -> None:
    await spin_of(front_end)
    ticket = front_end.submit()
    ticket.cancel()
    engine_completes(front_end)
    await rounds()
    ended: list[Any] = front_end.answers
    assert len(ended) == 1
    front_end.submit()
    assert front_end.partition.rows_out == 1
