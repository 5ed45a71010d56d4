"""When memory is given back."""

import pytest

from scheduler.clock import VirtualClock
from server.idle import IDLE_CLEANUP_S, IdleCleanup

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("batches", "releases"),
    [
        ([0] * 11, [10]),  # idle since the first look
        ([0] * 40, [10]),  # once, however long
        ([0] * 10 + [1] * 11, [20]),  # a batch at the last moment starts a new period
        ([*range(40)], []),  # never idle
        ([5] * 11 + [6] * 11, [10, 21]),  # again after work
        ([5] * 11 + [6, 7] + [7] * 9 + [8] * 10, [10]),  # between them too short
    ],
)
def test_once_for_each_period_without_a_batch(batches: list[int], releases: list[int]) -> None:
    """Count of batches by second, and the seconds in which memory was given back."""
    assert IDLE_CLEANUP_S == 10
    clock = VirtualClock()
    released: list[int] = []

    def second() -> int:
        return clock.now_ns() // SECOND_NS

    cleanup = IdleCleanup(lambda: batches[second()], lambda: released.append(second()), clock)
    for _ in batches:
        cleanup.tick()
        clock.advance(SECOND_NS)
    assert released == releases


def test_it_goes_by_the_clock_not_by_the_ticks() -> None:
    """A tick may come late, or be one of many."""
    clock = VirtualClock()
    released: list[int] = []
    cleanup = IdleCleanup(lambda: 1, lambda: released.append(clock.now_ns()), clock)
    for _ in range(100):
        cleanup.tick()
    clock.advance(25 * SECOND_NS)
    cleanup.tick()
    assert released == [25 * SECOND_NS]
