"""Who hangs is killed, and nobody else: over a real arena, with children whose processes are stand-ins."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from structlog.testing import capture_logs

from scheduler import _ring
from scheduler.partition import Outcome
from server import watchdog
from server.children import Duty
from server.liveness import CHECK_EVERY_S
from server.watchdog import STALL_BATCHES, Watchdog
from tests.server.handover_world import Service

TIMEOUT_S = 1.0
CHECKS = round(TIMEOUT_S / CHECK_EVERY_S)
MS = 1_000_000


class Watched:
    """Two engines and two front ends; the rings of the first of each are in the test's hands."""

    def __init__(self, service: Service) -> None:
        native = service.arena.native
        engine_fds, frontend_fds = service.fds[:2], service.fds[2:]
        self.service = service
        self.engine, _ = service.engines
        self.frontend, _ = service.frontends
        self.engine_fd = engine_fds[0]
        self.front_port = _ring.FrontendPort(native, 0, frontend_fds[0], engine_fds)
        self.engine_port = _ring.EnginePort(native, 0, engine_fds[0], frontend_fds)
        self.debts = Counter[str]()
        self.timeout_s = TIMEOUT_S
        self._slots = iter(range(self.front_port.first_slot, self.front_port.first_slot + 16))
        names = [child.name for child in (*service.engines, *service.frontends)]
        self._watchdog = Watchdog(
            native,
            service.engines,
            service.frontends,
            dict(zip(names, service.fds, strict=True)),
            owed=self.debts.__getitem__,
            timeout_s=lambda: self.timeout_s,
        )
        self.running = asyncio.create_task(self._watchdog.run())

    async def checked(self, times: int) -> None:
        """So many looks of the watchdog later."""
        for _ in range(times):
            await asyncio.sleep(0)

    def queue(self) -> None:
        assert self.front_port.push(0, 0, 0, [next(self._slots)], 1, 1, _ring.NO_DEADLINE, 1, False)

    def run(self) -> None:
        """The engine answers one item, and the front end has an answer to fetch."""
        slots = np.empty(1, np.uint32)
        assert self.engine_port.take(0, 1, 0, slots) == 1
        self.engine_port.complete(slots, np.array([Outcome.RESULT], np.uint8), 1, 1, 1, 1, 1)

    def woken(self) -> bool:
        """Whether the engine has been woken since it was last asked."""
        try:
            os.eventfd_read(self.engine_fd)
        except BlockingIOError:
            return False
        return True

    def killed(self) -> list[str]:
        children = (*self.service.engines, *self.service.frontends)
        return [child.name for child in children if child.alive and self.service.killed(child)]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
async def watched(service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """The watchdog looks in every turn of the event loop; each look counts for as long as ever."""
    monkeypatch.setattr(watchdog, "CHECK_EVERY_S", 0)
    watched = Watched(service)
    await watched.checked(2)
    yield watched
    watched.running.cancel()


async def test_an_engine_that_does_nothing_with_work_before_it(watched: Watched) -> None:
    """It is woken first: it may wait for more. Then it is killed, and that is told once."""
    watched.queue()
    with capture_logs() as logged:
        await watched.checked(CHECKS - 1)
        assert (watched.woken(), watched.killed(), logged) == (True, [], [])
        await watched.checked(CHECKS - 1)  # until it is gone
    assert watched.killed() == ["engine-0"]
    assert [(line["event"], line["child"], line["idle_s"]) for line in logged] == [
        ("child makes no progress, killing it", "engine-0", TIMEOUT_S)
    ]


async def test_an_engine_that_looks_when_it_is_woken(watched: Watched) -> None:
    """Though what it has waits on."""
    watched.queue()
    for _ in range(5 * CHECKS):
        await watched.checked(1)
        if watched.woken():
            watched.engine_port.look()
    assert watched.killed() == []


async def test_a_look_is_no_progress_while_a_batch_runs(watched: Watched) -> None:
    """One instance that looks would hide another that hangs."""
    watched.queue()
    assert watched.engine_port.take(0, 1, 0, np.empty(1, np.uint32)) == 1
    for _ in range(CHECKS + 2):
        await watched.checked(1)
        watched.engine_port.look()
    assert watched.killed() == ["engine-0"]


async def test_an_engine_with_nothing_to_do(watched: Watched) -> None:
    """May stand still for ever; it is not even woken."""
    await watched.checked(5 * CHECKS)
    assert (watched.killed(), watched.woken()) == ([], False)


@pytest.mark.parametrize("duty", [Duty.PREPARING, Duty.SERVING, Duty.RETIRING])
async def test_only_engines_that_are_ready_are_watched(watched: Watched, duty: Duty) -> None:
    """Others load and warm up, which may take long; whatever they are there for."""
    watched.engine.duty = duty
    watched.engine.ready = False
    watched.queue()
    await watched.checked(2 * CHECKS)
    assert watched.killed() == []
    watched.engine.ready = True
    await watched.checked(CHECKS + 2)
    assert watched.killed() == ["engine-0"]


async def test_engines_that_are_prepared_are_helped_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else: who serves does not stand back."""
    helped = list[int]()
    monkeypatch.setattr(watchdog, "relieve", helped.append)
    await watched.checked(2)
    watched.engine.ready = False
    await watched.checked(2)
    assert helped == []
    watched.engine.duty = Duty.PREPARING
    await watched.checked(2)
    assert watched.engine.process is not None
    assert set(helped) == {watched.engine.process.pid}
    watched.engine.process = None
    helped.clear()
    await watched.checked(2)
    assert helped == []


async def test_large_batches_may_take_longer(watched: Watched) -> None:
    """Five times what is predicted for the largest of any model."""
    high_ns = 600 * MS
    watched.engine_port.publish_forecast(0, 4, MS, [1, 4], [MS, MS], [MS, high_ns], [MS, MS])
    watched.queue()
    await watched.checked(round(STALL_BATCHES * high_ns / 1e9 / CHECK_EVERY_S) - 1)
    assert watched.killed() == []
    await watched.checked(1)
    assert watched.killed() == ["engine-0"]


async def test_a_front_end_that_fetches_no_answers(watched: Watched) -> None:
    """One that fetches some now and then does something."""
    for _ in range(3):
        watched.queue()
        watched.run()
        await watched.checked(CHECKS - 1)
        assert len(watched.front_port.drain()) == 1
        await watched.checked(1)
    watched.queue()
    watched.run()
    await watched.checked(CHECKS - 1)
    assert watched.killed() == []
    await watched.checked(3)
    assert watched.killed() == ["frontend-0"]


@pytest.mark.parametrize("name", ["engine-0", "frontend-1"])
async def test_who_owes_a_word_has_something_to_do(watched: Watched, name: str) -> None:
    """Others wait for it."""
    watched.debts[name] = 1
    await watched.checked(CHECKS + 3)
    assert watched.killed() == [name]


async def test_another_timeout_counts_from_the_next_look_on(watched: Watched) -> None:
    """Longer or shorter."""
    watched.queue()
    await watched.checked(CHECKS - 1)
    watched.timeout_s = 2 * TIMEOUT_S
    await watched.checked(CHECKS - 1)
    assert watched.killed() == []
    watched.timeout_s = TIMEOUT_S / 2
    await watched.checked(1)
    assert watched.killed() == ["engine-0"]
