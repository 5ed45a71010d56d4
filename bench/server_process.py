"""A real server in a process of its own, on free loopback ports, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psutil

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0


class ServerProcess:
    """Starts on `start`, is ready when that returns, and is gone after `stop`."""

    def __init__(self, settings: Mapping[str, str] | None = None, arguments: tuple[str, ...] = ()) -> None:
        self._settings = dict(settings or {})
        self._arguments = arguments
        self.port, self.http_port, self.admin_port = free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def target(self) -> str:
        """For a gRPC channel."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises RuntimeError with the server's own words when it does not become ready."""
        self._log = tempfile.NamedTemporaryFile(prefix="tickring-server-", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "server",
                f"--grpc-port={self.port}",
                f"--http-port={self.http_port}",
                f"--admin-port={self.admin_port}",
                *self._arguments,
            ],
            env={**os.environ, **self._settings},
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        self.wait_for_log("ready  ", READY_TIMEOUT_S)

    def wait_for_log(self, text: str, timeout_s: float) -> None:
        """Waits until the server has logged this; polls, for a log has no event to await."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log()
                self.stop()
                raise RuntimeError(f"no {text.strip()!r} from the server; it said:\n{said}")
            time.sleep(0.01)

    def log(self) -> str:
        """What it has written to stderr so far."""
        assert self._log is not None
        return Path(self._log.name).read_text(errors="replace")

    def child(self, role: str) -> psutil.Process:
        """A child process by role: "frontend" or "engine". Raises LookupError when there is none."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.cmdline()[-2:-1] == [role]:
                    return child
            except psutil.Error:
                continue  # it died between the listing and the question
        raise LookupError(f"the server has no {role}")

    def stop(self) -> int | None:
        """Drains the server, or ends it when it does not; its exit code."""
        if self.process is None:
            return None
        children = self._children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            _, alive = psutil.wait_procs(children, timeout=5)
            for child in alive:
                child.kill()
            self.process = None

    def _children(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.Error:
            return []


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody has at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
