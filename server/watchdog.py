"""Ends children that hang: engines with items queued, front ends with answers to fetch, that do nothing.

A child that is killed is one that died, and what follows is the same. An engine that is being prepared may
take its time; where it stands back so far that it never gets any, it is helped on.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

import structlog

from scheduler import _ring
from server.children import Child, Duty
from server.considerate import relieve
from server.liveness import CHECK_EVERY_S

# A batch may take this many times what is predicted for the largest before its engine counts as stuck.
STALL_BATCHES = 5

log = structlog.get_logger()


class Watchdog:
    """Looks at every child now and then."""

    def __init__(
        self,
        native: _ring.Arena,
        engines: Sequence[Child],
        frontends: Sequence[Child],
        eventfds: Mapping[str, int],
        *,
        owed: Callable[[str], int],
        timeout_s: Callable[[], float],
    ) -> None:
        """Args:
        eventfds: by child's name, where it is woken.
        owed: by child's name, for how many dead others' rings its word is awaited: that is work, too.
        timeout_s: the setting, as it is now.
        """
        self._native = native
        self._engines = engines
        self._frontends = frontends
        self._eventfds = eventfds
        self._owed = owed
        self._timeout_s = timeout_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for child in self._engines:
                if child.ready:
                    idle_s = self._idle_s(child, *self._native.engine_progress(child.index))
                    # It may wait for a batch to fill. Woken, it looks, and a look is progress.
                    if idle_s:
                        os.eventfd_write(self._eventfds[child.name], 1)
                    self._kill_if_stuck(child, idle_s, self._engine_timeout_s(child.index))
                elif child.duty is Duty.PREPARING and child.process is not None:
                    relieve(child.process.pid)
            for child in self._frontends:
                if child.ready:
                    idle_s = self._idle_s(child, *self._native.frontend_progress(child.index))
                    self._kill_if_stuck(child, idle_s, self._timeout_s())

    def _idle_s(self, child: Child, waiting: int, steps: int) -> float:
        return child.progress.check(waiting + self._owed(child.name), steps)

    def _engine_timeout_s(self, engine: int) -> float:
        """The setting, or longer where the models' largest batches may well take longer."""
        longest_ns = max(
            (
                high
                for model in range(self._native.models)
                for _, _, high, _ in self._native.forecast(engine, model)["buckets"]
            ),
            default=0,
        )
        return max(self._timeout_s(), STALL_BATCHES * longest_ns / 1e9)

    def _kill_if_stuck(self, child: Child, idle_s: float, timeout_s: float) -> None:
        if idle_s >= timeout_s and child.alive:
            log.error("child makes no progress, killing it", child=child.name, idle_s=idle_s)
            child.progress.reset()
            child.kill()
