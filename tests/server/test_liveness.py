"""When a child counts as stuck."""

import pytest

from server.liveness import Progress

EVERY_S = 0.5


@pytest.mark.parametrize(
    ("readings", "idle_s"),
    [
        # (what waits, steps): for how long it has done nothing, after each reading
        ([(0, 0)] * 3, [0, 0, 0]),  # nothing to do
        ([(5, 7)] * 4, [0, 0.5, 1.0, 1.5]),  # the first reading has nothing to compare with
        ([(5, 0)] * 2, [0, 0.5]),  # also where nothing has ever been done
        ([(5, 7), (9, 7), (1, 7)], [0, 0.5, 1.0]),  # what waits may change, doing is what counts
        ([(5, 7), (5, 8), (5, 9)], [0, 0, 0]),
        ([(5, 7), (5, 7), (5, 8), (5, 8)], [0, 0.5, 0, 0.5]),  # one step is enough
        ([(5, 7), (5, 7), (0, 7), (5, 7), (5, 7)], [0, 0.5, 0, 0.5, 1.0]),
        ([(5, 7), (5, 7), (5, 3)], [0, 0.5, 0]),  # counts of another life
    ],
)
def test_idle_while_something_waits_and_nothing_is_done(
    readings: list[tuple[int, int]], idle_s: list[float]
) -> None:
    """Counted in readings: whoever reads may have been stopped between two of them."""
    progress = Progress(EVERY_S)
    assert [progress.check(*reading) for reading in readings] == idle_s
    assert progress.idle_s == idle_s[-1]


def test_next_process_starts_afresh() -> None:
    """Though the counters in the arena go on where its predecessor left them."""
    progress = Progress(EVERY_S)
    for _ in range(3):
        progress.check(5, 7)
    assert progress.idle_s == 1.0
    progress.reset()
    assert progress.idle_s == 0.0
    assert [progress.check(5, 7), progress.check(5, 7)] == [0.0, 0.5]
