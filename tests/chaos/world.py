"""What a campaign works on: a server of small models, and a load process that it commands."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.chaos import mix
from tests.e2e import zoo
from tests.e2e.service import Service, pause

FRONTENDS = 2
SLOTS = 512
# A stopped engine is missed after this; a fault that only pauses it stays well below.
STALL_TIMEOUT_S = 2.0
SETTINGS = {
    "TICKRING_SERVER__FRONTENDS": str(FRONTENDS),
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": str(SLOTS),
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "8",
    "TICKRING_EXECUTOR__STALL_TIMEOUT_S": str(STALL_TIMEOUT_S),
}
HTTP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 90.0


class World:
    """A server and its load. Both end with the context."""

    def __init__(self, repository: Path, seed: int, engines: int = 1) -> None:
        self._models = zoo.build(repository, *mix.MODELS)
        self._seed = seed
        self.engines = [f"engine-{index}" for index in range(engines)]

    def __enter__(self) -> Self:
        devices = {"TICKRING_EXECUTOR__DEVICE": ",".join("cpu" for _ in self.engines)}
        self.service = Service("--models", str(self._models), settings=SETTINGS | devices)
        try:
            self.service.ready()
            self._url: str = self.service.wait_for("ready")["status"].removesuffix("/status")
            self._load = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.load", self.service.target, str(self._seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except BaseException:
            self.service.kill()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._load.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._load.stdin.close()
        try:
            self._load.wait(ANSWER_TIMEOUT_S)
        finally:
            self._load.kill()
            if error is None:
                self.service.stop()
            self.service.kill()

    def command(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Has the load process do something; its answer."""
        self.begin(do, **arguments)
        return self.answer()

    def begin(self, do: str, **arguments: Any) -> None:
        """Tells the load process to do something; `answer` waits for its end."""
        assert self._load.stdin is not None
        self._load.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._load.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Of the load process to the command begun before."""
        assert self._load.stdout is not None
        line = self._load.stdout.readline()
        if not line:
            raise RuntimeError(f"the load process is gone, exit code {self._load.wait(ANSWER_TIMEOUT_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def get(self, path: str) -> bytes:
        """From the server's HTTP port. Raises OSError, also for any status but 200."""
        with urllib.request.urlopen(self._url + path, timeout=HTTP_TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body

    def ready(self) -> bool:
        """Whether every process of the server serves; the server itself needs only one of its engines."""
        try:
            self.get("/readyz")
            return all(engine["ready"] for engine in json.loads(self.get("/status"))["engines"])
        except OSError:
            return False

    def kill(self, child: str) -> None:
        """kill -9."""
        os.kill(self.pid(child), signal.SIGKILL)

    def stop_for_good(self, child: str) -> None:
        """SIGSTOP, and no SIGCONT: only its supervisor can help."""
        pause(self.pid(child))

    @contextlib.contextmanager
    def paused(self, *children: str) -> Iterator[None]:
        """Stops children while the context lasts."""
        with contextlib.ExitStack() as stack:
            for pid in map(self.pid, children):
                pause(pid)
                stack.callback(os.kill, pid, signal.SIGCONT)
            yield

    def pid(self, child: str) -> int:
        """The process that is "engine-0" or "frontend-0" now."""
        return self.service.pid(child)

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the supervisor and its children, by name."""
        pids = {name: self.pid(name) for name in self.children()}
        pids["supervisor"] = self.service.process.pid
        return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}

    def children(self) -> Sequence[str]:
        """Names of the supervisor's children."""
        return (*self.engines, *(f"frontend-{index}" for index in range(FRONTENDS)))
