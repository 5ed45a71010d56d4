"""How other engines take over while the service goes on: prepared all, then committed at once, or not at all.

    prepare   new engines load and warm up, while the old ones serve on as before
    commit    every front end changes over between two requests; nothing new goes to the old engines
    see off   an old engine answers what it has; once nothing can come any more, and nothing is left, it ends

A process of its own for what is new keeps what it does to itself: a model that is slow to load, that raises,
or that takes its process down disturbs nobody, and the memory of what is no longer served goes back whole
(docs/decisions/0013). Each device has two chairs for that, of which at most one serves.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from scheduler import _ring
from server.children import Child, Duty
from server.revision import Revision

# How often it is looked whether an engine that retires has answered everything.
LOOK_EVERY_S = 0.02

log = structlog.get_logger()


class PreparationFailed(Exception):
    """The new engines cannot serve; its text says why. Nothing has changed."""


class Processes(Protocol):
    """What the supervisor does for a handover."""

    def spawn(self, child: Child) -> None:
        """Starts a process in this place; none while the service ends."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the service ends."""
        ...


class Handover:
    """Belongs to the supervisor's event loop. One preparation at a time."""

    def __init__(
        self,
        processes: Processes,
        native: _ring.Arena,
        engines: Sequence[Child],
        frontends: Sequence[Child],
        devices: int,
        is_attached: Callable[[str], bool],
    ) -> None:
        """`engines`: every chair; that of index i is of device i modulo `devices`."""
        self._processes = processes
        self._native = native
        self._engines = engines
        self._frontends = frontends
        self._devices = devices
        self._is_attached = is_attached
        self._moved = asyncio.Event()
        self._seeing_off: set[asyncio.Task[None]] = set()

    def moved(self) -> None:
        """Something about a child has changed: whoever waits looks again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def prepare(self, revision: Revision) -> Sequence[Child]:
        """Starts new engines and waits until they are ready. Nobody but them knows of it yet.

        Raises:
            PreparationFailed: one of them cannot be, or not in time. None of them is left.
        """
        await self._until(lambda: self._processes.stopping or self._vacant() is not None)
        chairs = self._vacant()
        if self._processes.stopping or chairs is None:
            raise PreparationFailed("the server is draining")
        timeout_s = revision.settings.executor.prepare_timeout_s
        try:
            for chair in chairs:
                chair.duty, chair.revision, chair.failure = Duty.PREPARING, revision, ""
                self._processes.spawn(chair)
            async with asyncio.timeout(timeout_s):
                await self._until(
                    lambda: (
                        self._processes.stopping
                        or not all(chair.alive for chair in chairs)
                        or all(chair.ready for chair in chairs)
                    )
                )
        except TimeoutError:
            failure = f"not ready within executor.prepare_timeout_s, {timeout_s:g} s"
        except OSError as error:  # no memory, or too many processes
            failure = f"its process cannot be started: {error.strerror}"
        except BaseException:
            self._dismiss(chairs)
            raise
        else:
            if all(chair.ready for chair in chairs) and not self._processes.stopping:
                return chairs
            failure = next(
                (chair.failure for chair in chairs if chair.failure),
                "the server is draining",
            )
        self._dismiss(chairs)
        raise PreparationFailed(failure)

    def commit(self, revision: Revision, chairs: Sequence[Child]) -> None:
        """Everybody goes by this from now on. `chairs`: those prepared for it; none: the engines stay.

        To be followed by `told`, with nothing awaited between: a process that attaches in between would be
        told of the one and not of the other.
        """
        if chairs:
            for engine in self._engines:
                if engine.duty is Duty.SERVING:
                    self._retire(engine)
            for chair in chairs:
                chair.duty = Duty.SERVING
        for child in (*self._engines, *self._frontends):
            if child.duty is Duty.SERVING:
                child.revision = revision

    def serving(self) -> Sequence[Child]:
        """The engines that serve, or will again once their process does."""
        return [engine for engine in self._engines if engine.duty is Duty.SERVING]

    def let_go(self, frontend: str, engine: int) -> None:
        """This front end pushes nothing to that engine any more."""
        self._engines[engine].holders.discard(frontend)
        self.moved()

    def frontend_died(self, name: str) -> None:
        """Its successor knows nothing of engines that retire."""
        for engine in self._engines:
            engine.holders.discard(name)
        self.moved()

    async def taken_up(self, revision: Revision) -> None:
        """Waits until every process goes by this revision, or one that is newer.

        One that does not within the time after which a child counts as stuck is killed; its successor does.
        """

        def behind() -> list[Child]:
            return [
                child
                for child in (*self.serving(), *self._frontends)
                if self._is_attached(child.name) and child.taken_up < revision.number
            ]

        while behind() and not self._processes.stopping:
            try:
                async with asyncio.timeout(revision.settings.executor.stall_timeout_s):
                    await self._until(lambda: self._processes.stopping or not behind())
            except TimeoutError:
                for child in behind():
                    log.error("child takes up no change, killing it", child=child.name)
                    child.kill()

    async def seen_off(self) -> None:
        """Waits until every engine that retires has."""
        await self._until(
            lambda: (
                self._processes.stopping or not any(engine.duty is Duty.RETIRING for engine in self._engines)
            )
        )

    def _vacant(self) -> Sequence[Child] | None:
        """A chair for each device; None while there is none for some."""
        chairs = []
        for device in range(self._devices):
            free = [
                chair
                for chair in self._engines[device :: self._devices]
                if chair.duty is Duty.VACANT and not chair.alive
            ]
            if not free:
                return None
            chairs.append(free[0])
        return chairs

    def _retire(self, engine: Child) -> None:
        if not engine.alive:
            engine.duty = Duty.VACANT
            return
        engine.duty = Duty.RETIRING
        if not engine.ready:
            engine.kill()  # nobody has pushed anything to it
            return
        engine.holders = {child.name for child in self._frontends if self._is_attached(child.name)}
        task = asyncio.create_task(self._see_off(engine))
        self._seeing_off.add(task)
        task.add_done_callback(self._seeing_off.discard)

    async def _see_off(self, engine: Child) -> None:
        process = engine.process  # once it has ended, another one may have its chair
        await self._until(lambda: not engine.holders or engine.process is not process)
        # Counters in shared memory have no event to wait for.
        while engine.process is process and self._native.engine_progress(engine.index)[0]:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)
        if engine.process is not process:
            return
        engine.tell({"type": "stop"})
        try:
            async with asyncio.timeout(engine.revision.settings.executor.stall_timeout_s):
                await self._until(lambda: engine.process is not process)
        except TimeoutError:
            log.error("engine does not stop, killing it", child=engine.name)
            engine.kill()

    def _dismiss(self, chairs: Sequence[Child]) -> None:
        for chair in chairs:
            chair.duty = Duty.RETIRING if chair.alive else Duty.VACANT
            chair.kill()
        self.moved()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._moved.wait()
