"""What a campaign works on: a server of the bundled model, a witness, and what can be measured of them."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import psutil

from tests.e2e.service import Line, Service, clean_environment
from tests.fuzz import tokens

SLOTS = 2048
# Small, so that messages around it are cheap.
MAX_MESSAGE_BYTES = 1 << 20
SETTINGS = {
    # One front end has all of it: the good caller shares it with every bad one.
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_SERVER__MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": str(SLOTS),
    "TICKRING_EXECUTOR__DEVICE": "cpu",
}
CHILDREN = ("frontend-0", "engine-0")
HTTP_TIMEOUT_S = 10.0
# After the last call: for connections that were dropped to be noticed, and cancelled work to come back.
SETTLE_S = 30.0
POLL_S = 0.05
# Files that the front end may have open more at the end than at the beginning: connections of the witness.
MORE_FILES = 16
MAX_LINES = 20
# gRPC itself prints this where it could not tell a peer that its path is no UTF-8: it has left.
_PEER_IS_GONE = re.compile(
    r'Traceback \(most recent call last\):\n(?:  File "src/python/grpcio/.*\n)+'
    r"grpc\._cython\.cygrpc\.ExecuteBatchError: .*"
)


class World:
    """A server and a witness. Both end with the context."""

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="tickring-fuzz-")
        tokens_file = tokens.write(Path(self._folder.name))
        self.service = Service(settings=SETTINGS | {"TICKRING_AUTH__TOKENS_FILE": str(tokens_file)})
        try:
            self.service.ready()
            self._url: str = self.service.wait_for("ready")["status"]
            self._pids = {name: self.service.pid(name) for name in CHILDREN}
            self._pids["supervisor"] = self.service.process.pid
            self._files = self._open_files()
            self._witness = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.witness", self.service.target],
                env=clean_environment({}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except BaseException:
            self.service.kill()
            self._folder.cleanup()
            raise
        if self._said() != "calling":
            self.__exit__(None, None, None)
            raise RuntimeError("the witness was not served before anything bad came")
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._witness.kill()
        with self._witness, self._folder:  # closes its pipes
            self.service.kill()

    @property
    def target(self) -> str:
        """Where it serves gRPC."""
        return self.service.target

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of each process, by name; 0 where it is gone."""
        return {name: _memory_bytes(pid) for name, pid in self._pids.items()}

    def dismiss_witness(self) -> dict[str, Any]:
        """Its account; it calls no more."""
        assert self._witness.stdin is not None
        self._witness.stdin.close()
        account: dict[str, Any] = json.loads(self._said() or "{}")
        return account or {"answers": {}, "problems": ["the witness is gone"]}

    def problems(self) -> list[str]:
        """What is wrong with the server now that nobody calls any more; empty after a good campaign."""
        return [*self._process_problems(), *self._book_problems(), *log_problems(self.service.logged())]

    def stop(self) -> list[str]:
        """Drains it; what was wrong with that."""
        try:
            self.service.stop()
        except AssertionError:
            return ["the server did not end with 0 and every admitted item ended once"]
        return []

    def _process_problems(self) -> list[str]:
        found = []
        supervisor = psutil.Process(self._pids["supervisor"])
        running = {child.pid for child in supervisor.children()} | {supervisor.pid}
        for name, pid in self._pids.items():
            if pid not in running:
                found.append(f"{name}, process {pid}, is gone")
        if not found and not _within(SETTLE_S, lambda: self._open_files() <= self._files + MORE_FILES):
            found.append(f"the front end has {self._open_files()} files open, at the start {self._files}")
        return found

    def _book_problems(self) -> list[str]:
        if not _within(SETTLE_S, lambda: not _unsettled(self._status())):
            return [f"/status at the end: {_unsettled(self._status())}"]
        restarts = {name: count for name, count in self._status()["restarts"].items() if count}
        return [f"restarted: {restarts}"] if restarts else []

    def _open_files(self) -> int:
        return psutil.Process(self._pids["frontend-0"]).num_fds()

    def _status(self) -> dict[str, Any]:
        with urllib.request.urlopen(self._url, timeout=HTTP_TIMEOUT_S) as answer:
            status: dict[str, Any] = json.load(answer)
        return status

    def _said(self) -> str:
        assert self._witness.stdout is not None
        return self._witness.stdout.readline().strip()


def log_problems(lines: list[Line]) -> list[str]:
    """What tells of a bug: tracebacks, exceptions, errors, and all that the server has not written.

    What a peer sends must never become a line, or what looks like one.
    """
    own = [line for line in lines if "level" in line]
    foreign = "\n".join(str(line["event"]) for line in lines if "level" not in line)
    found = [
        str(line)
        for line in own
        if line["level"] not in ("debug", "info", "warning") or re.search("[Ee]xception|Traceback", str(line))
    ]
    found += [line for line in _PEER_IS_GONE.sub("", foreign).splitlines() if line]
    return [f"logged: {line[:1000]}" for line in found[:MAX_LINES]]


def _memory_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _unsettled(status: dict[str, Any]) -> dict[str, Any]:
    """Whatever of the books is not as it is when nothing is under way."""
    wanted = {"open": 0, "undelivered": 0, "corrupt": 0, "slots_free": SLOTS, "waiting": 0, "lost": 0}
    return {
        f"{part['name']} {key}": part[key]
        for part in (*status["frontends"], *status["engines"])
        for key, value in wanted.items()
        if part.get(key, value) != value
    }


def _within(seconds: float, condition: Any) -> bool:
    """Waits for what has no event to await."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
