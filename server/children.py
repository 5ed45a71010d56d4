"""A place for a child process, as the supervisor sees it."""

import contextlib
import socket
import subprocess
from enum import Enum, auto

from server import control
from server.liveness import CHECK_EVERY_S, Progress
from server.revision import Revision


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
