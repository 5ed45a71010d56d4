"""Gives memory back when an engine has had nothing to do for a while."""

from collections.abc import Callable

from scheduler.clock import Clock

IDLE_CLEANUP_S = 10.0


class IdleCleanup:
    """Calls `release` once in each period in which no batch was dispatched for `IDLE_CLEANUP_S`.

    `batches` counts the batches dispatched so far. `release` runs on the thread of `tick`, possibly beside a
    batch that comes just then.
    """

    def __init__(self, batches: Callable[[], int], release: Callable[[], None], clock: Clock) -> None:
        self._batches = batches
        self._release = release
        self._clock = clock
        self._seen: int | None = None
        self._since_ns = 0
        self._released = False

    def tick(self) -> None:
        """Looks at the count; about once a second."""
        count, now_ns = self._batches(), self._clock.now_ns()
        if count != self._seen:
            self._seen, self._since_ns, self._released = count, now_ns, False
        elif not self._released and now_ns - self._since_ns >= IDLE_CLEANUP_S * 1e9:
            self._released = True
            self._release()
