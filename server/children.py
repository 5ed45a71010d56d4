"""A place for a child process, as the supervisor sees it."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from enum import Enum, auto

import structlog

from server import control
from server.boot import Boot, spawn
from server.liveness import CHECK_EVERY_S, Progress
from server.revision import Revision

# A child that served is restarted at once; one that ends before it could, after a growing delay.
FIRST_RESTART_DELAY_S = 0.1
MAX_RESTART_DELAY_S = 5.0

Heard = Callable[[control.Message | None], None]

log = structlog.get_logger()


class Duty(Enum):
    """What the process in a place is there for. Front ends always serve."""

    VACANT = auto()  # there is none
    PREPARING = auto()  # to serve what nobody serves yet
    SERVING = auto()
    RETIRING = auto()  # to answer what it has, and end


class Child:
    """One place for a child process; processes come and go in it."""

    def __init__(self, role: str, index: int, duty: Duty, revision: Revision) -> None:
        self.role = role
        self.index = index
        self.name = f"{role}-{index}"
        self.duty = duty
        self.revision = revision  # that its next process is started with
        self.taken_up = revision.number  # the newest that its process has said to go by
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.pidfd = -1
        self.boot_id = 0  # of the process in this place, or the last one
        self.warm = False  # waits for `attach`
        self.ready = False  # serves
        self.failure = ""  # what it said before it ended
        self.failed_starts = 0  # since it last served
        self.restarts = 0
        self.readings: dict[str, float] = {}  # of an engine's device, the newest
        self.progress = Progress(CHECK_EVERY_S)
        # Of an engine that retires: the front ends that may still push to it.
        self.holders: set[str] = set()

    @property
    def alive(self) -> bool:
        """Whether a process is in this place."""
        return self.process is not None

    @property
    def restart_delay_s(self) -> float:
        """How long its next start has to wait."""
        if not self.failed_starts:
            return 0.0
        return min(MAX_RESTART_DELAY_S, FIRST_RESTART_DELAY_S * 2.0 ** (self.failed_starts - 1))

    def start(self, boot: Boot, heard: Heard, exited: Callable[[], None]) -> None:
        """Starts a process; `exited` is called when it has ended, and calls `ended`. Raises OSError."""
        self.process, self.socket, self.pidfd = spawn(boot)
        self.boot_id = boot.boot_id
        asyncio.get_running_loop().add_reader(self.pidfd, exited)
        control.listen(self.socket, heard)
        log.debug("spawned", child=self.name, pid=self.process.pid)

    def not_started(self, error: OSError) -> None:
        """Counts that `start` has failed: what is missing now may be there when it is tried again."""
        self.failed_starts += 1
        log.error("child cannot be started", child=self.name, error=error.strerror)

    def ended(self, heard: Heard) -> int:
        """Empties the place, once `heard` knows what the process still said; returns its exit code."""
        assert self.process is not None
        assert self.socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        loop.remove_reader(self.socket)
        for message in control.unread(self.socket):
            heard(message)
        os.close(self.pidfd)
        self.socket.close()
        code = self.process.wait()
        self.failed_starts = 0 if self.ready else self.failed_starts + 1
        self.process = self.socket = None
        self.warm = self.ready = False
        self.readings = {}
        return code

    def tell(self, message: control.Message) -> None:
        """Sends a message; a child that is gone will be noticed by its exit."""
        if self.socket is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.send(self.socket, message)

    def kill(self) -> None:
        """Ends its process, if there is one."""
        if self.process is not None:
            self.process.kill()
