"""A server in a process of its own: started, watched through what it writes, and never left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).with_name("launcher.py")
# Starting loads torch, which takes its time on a machine that others use too.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0
# Between the end of the server and of its last child.
CHILDREN_TIMEOUT_S = 5.0

Line = dict[str, Any]


class Service:
    """One `python -m server` on free ports of 127.0.0.1, logging JSON.

    Its children write to the same pipe, so the end of what is written is the end of them all.
    """

    def __init__(self, *arguments: str, settings: Mapping[str, str] | None = None) -> None:
        self.arguments = arguments
        self._lines: list[str] = []
        self._ended = False
        self._moved = threading.Condition()
        self.process = subprocess.Popen(
            command(*FREE_PORTS, *arguments),
            env=clean_environment(LOGGING | dict(settings or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",  # gRPC logs what peers send as it came
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, *, after: int = 0, **fields: object) -> Line:
        """The first line that logs this event with these fields, not among the first `after` lines."""

        def found() -> Line | None:
            wanted = {"event": event, **fields}
            for line in self.logged()[after:]:
                if wanted.items() <= line.items():
                    return line
            return None

        return self._wait(found, f"{event} {fields}")

    def ready(self) -> "Service":
        """Waits until it says that it serves."""
        self.wait_for("ready")
        return self

    @property
    def target(self) -> str:
        """Where it serves gRPC, once ready."""
        target: str = self.wait_for("ready")["target"]
        return target

    def logged(self) -> list[Line]:
        """What it has logged so far; other output becomes the event of a line without fields."""
        with self._moved:
            return [json.loads(line) if line.startswith("{") else {"event": line} for line in self._lines]

    def output(self) -> str:
        """All that it has written so far."""
        with self._moved:
            return "\n".join(self._lines)

    def pid(self, child: str) -> int:
        """The process that is "engine-0" or "frontend-0" now."""
        self.wait_for("spawned", child=child)
        return int(
            [line["pid"] for line in self.logged() if line.get("child") == child and "pid" in line][-1]
        )

    @contextlib.contextmanager
    def paused(self, child: str = "engine-0") -> Iterator[None]:
        """Stops a child while the context lasts: what is queued stays queued."""
        pid = self.pid(child)
        pause(pid)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # the test may have been its end
                os.kill(pid, signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Sends a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code; fails when the server or a child of it is there for longer than this."""
        code = self.process.wait(timeout_s)
        self._reader.join(CHILDREN_TIMEOUT_S)
        assert not self._reader.is_alive(), f"a child has outlived the server, which said:\n{self.output()}"
        return code

    def stop(self) -> None:
        """Drains it; fails unless it exits with 0 and every item that it has admitted has ended once."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.output()
        self.check_ends()

    def check_ends(self) -> int:
        """The items that its front ends have admitted, once drained; fails unless each has ended once."""
        drained = [line for line in self.logged() if line["event"] == "drained"]
        assert all(line["admitted"] == sum(line["ended"]) for line in drained), self.output()
        return sum(line["admitted"] for line in drained)

    def kill(self) -> None:
        """Ends it at once, if it is still there; its children die with it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(CHILDREN_TIMEOUT_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._moved:
                self._lines.append(line.rstrip("\n"))
                self._moved.notify_all()
        self.process.stdout.close()
        with self._moved:
            self._ended = True
            self._moved.notify_all()

    def _wait(self, found: Callable[[], Line | None], what: str) -> Line:
        with self._moved:
            self._moved.wait_for(lambda: found() is not None or self._ended, START_TIMEOUT_S)
            line = found()
        assert line is not None, f"no {what} from the server, which said:\n{self.output()}"
        return line


def pause(pid: int) -> None:
    """Returns once the process stands still; only SIGCONT or SIGKILL changes that."""
    os.kill(pid, signal.SIGSTOP)
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        while stat.read_text().rpartition(")")[2].split()[0] != "T":  # within microseconds
            pass


# With the process ids of the children. Choosing between forms of a model takes a second of each start.
LOGGING = {
    "TICKRING_TELEMETRY__LOG_FORMAT": "json",
    "TICKRING_TELEMETRY__LOG_LEVEL": "debug",
    "TICKRING_EXECUTOR__CPU_BACKEND": "torch",
}
# Limits and batches that do not follow from the cores and the speed of this machine.
BUNDLED = {
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_SCHEDULER__ADAPTIVE": "false",
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": "2048",
}
FREE_PORTS = ("--grpc-port=0", "--http-port=0", "--admin-port=0")


def command(*arguments: str) -> list[str]:
    """Starts a server that ends with the tests."""
    return [sys.executable, str(LAUNCHER), str(os.getpid()), *arguments]


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """That of the tests without settings of their surroundings, with these."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TICKRING_")}
    return own | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | dict(settings)


def run_server(
    arguments: Sequence[str], settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """For what ends by itself: its exit code, stdout and stderr."""
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=clean_environment(settings or {}),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )


def one_line(pattern: str, text: str) -> bool:
    """Whether the text is one line, and that line matches."""
    return re.fullmatch(f"{pattern}\n", text) is not None
