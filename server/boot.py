"""What a child process is told before anything else, and how it is started.

A child is spawned, never forked: gRPC and torch do not survive a fork. It inherits the arena, the
eventfds and its control socket by number, and learns everything else from the first control message.
It may load and warm up at once, but touches the rings only after the `attach` message.
"""

import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass

from server import control


@dataclass(frozen=True, slots=True)
class Boot:
    """The first message to a child.

    Attributes:
        index: of the front end or engine.
        device: of an engine, "cpu" or "cuda:N"; of the telemetry process, those of all engines, separated by
            commas; empty for a front end.
        revision: what the supervisor counts its changes by; see `server.revision`.
        settings: `Settings` as JSON.
        lineup: `Lineup` as JSON.
        boot_id: what this process is known by, unlike any other before or after it in its place.
        records_fd: where a front end sends its trace records, or the telemetry process finds them; -1: none
            are wanted.
        considerate: others serve meanwhile, so it loads and warms up without standing in their way.
    """

    role: str
    index: int
    parent_pid: int
    arena_fd: int
    frontend_eventfds: tuple[int, ...]
    engine_eventfds: tuple[int, ...]
    revision: int
    settings: str
    lineup: str
    grpc_port: int
    device: str = ""
    considerate: bool = False
    boot_id: int = 0
    records_fd: int = -1

    def to_message(self) -> control.Message:
        """As a control message."""
        return {"type": "boot", **asdict(self)}

    @classmethod
    def from_message(cls, message: control.Message | None) -> "Boot":
        """Raises ValueError when the message is something else."""
        if message is None or message.get("type") != "boot":
            raise ValueError(f"expected boot, got {message}")
        fields = {name: value for name, value in message.items() if name != "type"}
        for name in ("frontend_eventfds", "engine_eventfds"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def spawn(boot: Boot) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Starts a child and sends it its boot message; returns it, our end of its control socket, and its pidfd.

    Raises OSError when no process, memory or file is to be had; then nothing is left behind.
    """
    ours, theirs = control.channel()
    inherited = (boot.arena_fd, *boot.frontend_eventfds, *boot.engine_eventfds, boot.records_fd)
    fds = (theirs.fileno(), *(fd for fd in inherited if fd >= 0))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.child", boot.role, str(theirs.fileno())],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=_environment(boot.role),
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    try:
        control.send(ours, boot.to_message())
        # It reports the death of exactly this process, whatever becomes of its number.
        return process, ours, os.pidfd_open(process.pid)
    except OSError:
        ours.close()
        process.kill()
        process.wait()
        raise


def _environment(role: str) -> dict[str, str]:
    environment = dict(os.environ)
    if role == "frontend":
        # gRPC's event engine passes every read through two more threads. Without it a lone call took
        # 0.13 instead of 0.18 ms here and a core moved half as many stream messages again (decision 0004).
        environment.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    if role == "engine":
        # As shipped, glibc gives a batch's buffers back to the kernel and faults them in again for the
        # next: hundreds of page faults per batch. Keep them.
        environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 << 20))
    return environment
