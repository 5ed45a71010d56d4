"""A supervisor's children without processes, over the arena that they would share."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Sequence
from typing import cast

from scheduler.arena import Arena, Dimensions
from server import control
from server.children import Child, Duty
from server.handover import Handover
from server.lineup import Lineup
from server.revision import Revision
from server.settings import Settings

NOTHING = Lineup((), (), None)
# More turns of the event loop than anything here takes.
ROUNDS = 50


def revision(number: int, **executor_settings: float) -> Revision:
    """With these, past validation, which allows a second at least."""
    settings = Settings()
    executor = settings.executor.model_copy(update=executor_settings)
    return Revision(number, settings.model_copy(update={"executor": executor}), NOTHING)


class Process:
    """In the place of a child's process: whether it lives is the test's to say."""

    def __init__(self) -> None:
        self.pid = 0  # of no process
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Service:
    """A supervisor's children without processes, and the arena that they would share."""

    def __init__(self, devices: int = 1, frontends: int = 2) -> None:
        self.stopping = False
        start = revision(0)
        engines = range(2 * devices)
        self.arena = Arena.anonymous(Dimensions(frontends, 1, 16, 64, 64, engines=len(engines)))
        self.engines = [
            Child("engine", index, Duty.SERVING if index < devices else Duty.VACANT, start)
            for index in engines
        ]
        self.frontends = [Child("frontend", index, Duty.SERVING, start) for index in range(frontends)]
        self.attached = {child.name for child in (*self.engines[:devices], *self.frontends)}
        self._ends: dict[str, socket.socket] = {}
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in (*self.engines, *self.frontends)]
        self.handover = Handover(
            self, self.arena.native, self.engines, self.frontends, devices, self.attached.__contains__
        )
        self.spawned: list[str] = []
        for child in (*self.engines[:devices], *self.frontends):
            self.spawn(child)
            child.ready = True
        self.spawned.clear()

    def close(self) -> None:
        for child in (*self.engines, *self.frontends):
            if child.alive:
                self.exit(child)
        for fd in self.fds:
            os.close(fd)

    def spawn(self, child: Child) -> None:
        """As the supervisor does it, down to the process."""
        if self.stopping:
            return
        child.process = cast(subprocess.Popen[bytes], Process())
        child.socket, self._ends[child.name] = control.channel()
        self._ends[child.name].setblocking(False)
        child.taken_up = child.revision.number
        self.spawned.append(child.name)

    def exit(self, child: Child) -> None:
        """Its process has ended, and the supervisor has heard of it."""
        assert child.socket is not None
        child.socket.close()
        self._ends.pop(child.name).close()
        child.process = child.socket = None
        child.ready = False
        self.attached.discard(child.name)
        if child.duty is Duty.RETIRING:
            child.duty = Duty.VACANT
        elif child.duty is Duty.PREPARING:
            child.failure = child.failure or "its process died with code -9"
        if child in self.frontends:
            self.handover.frontend_died(child.name)
        self.handover.moved()

    def say(self, child: Child, **state: object) -> None:
        """The supervisor has heard something of a child."""
        for name, value in state.items():
            setattr(child, name, value)
        self.handover.moved()

    def killed(self, child: Child) -> bool:
        return cast(Process, child.process).killed

    def told(self, child: Child) -> list[str]:
        """The types of what a process has been told since it was last asked."""
        return [message["type"] for message in control.unread(self._ends[child.name])]

    def duties(self) -> str:
        return " ".join(engine.duty.name.lower() for engine in self.engines)

    async def prepared(self, number: int = 1) -> Sequence[Child]:
        """Engines that have been prepared without trouble."""
        preparing = asyncio.create_task(self.handover.prepare(revision(number)))
        await rounds()
        for engine in self.engines:
            if engine.duty is Duty.PREPARING:
                self.attached.add(engine.name)
                self.say(engine, ready=True)
        return await preparing

    async def changed(self, number: int = 1) -> None:
        """Other engines have taken over."""
        self.handover.commit(revision(number), await self.prepared(number))
        await rounds()

    def let_go(self, engine: int, *frontends: int) -> None:
        for frontend in frontends:
            self.handover.let_go(f"frontend-{frontend}", engine)


async def rounds() -> None:
    """Whatever can happen now has happened."""
    for _ in range(ROUNDS):
        await asyncio.sleep(0)
