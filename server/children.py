"""A place for a child process, as the supervisor sees it."""

import contextlib
import socket
import subprocess

from server import control
from server.liveness import CHECK_EVERY_S, Progress


class Child:
    """One place for a child process; processes come and go in it."""

    def __init__(self, role: str, index: int) -> None:
        self.role = role
        self.index = index
        self.name = f"{role}-{index}"
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.pidfd = -1
        self.warm = False  # waits for `attach`
        self.ready = False  # serves
        self.failed_starts = 0  # since it last served
        self.restarts = 0
        self.readings: dict[str, float] = {}  # of an engine's device, the newest
        self.progress = Progress(CHECK_EVERY_S)

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
