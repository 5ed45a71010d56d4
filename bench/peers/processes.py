"""A server with all of its processes: started, asked until it answers, weighed, and gone without a rest."""

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

READY_TIMEOUT_S = 120.0
POLL_S = 0.01
MAX_KILLS = 5
# Of its log, in characters.
MAX_SAID = 4000
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def adopt_orphans() -> None:
    """Makes orphans below this process its children: so none is lost sight of, whatever its parent does."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class PeerProcess:
    """One server. `folder` is where it may write, and is removed with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], grace_s: float) -> None:
        self._command = command
        self._environment = environment
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._log: IO[bytes] | None = None
        self._others: set[int] = set()

    def start(self, answers: Callable[[], bool]) -> float:
        """Seconds until it answers. Raises RuntimeError with its own words where it does not."""
        # A short path: Ray puts the names of its sockets below it.
        self._folder = tempfile.mkdtemp(prefix="peer-")
        self._log = (Path(self._folder) / "log").open("wb")
        self._others = {child.pid for child in psutil.Process().children(recursive=True)}
        began_s = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "TMPDIR": self._folder, "HOME": self._folder, **self._environment},
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            while not answers():
                if self._process.poll() is not None or time.monotonic() - began_s > READY_TIMEOUT_S:
                    said = (Path(self._folder) / "log").read_text(errors="replace")[-MAX_SAID:]
                    raise RuntimeError(f"no answer from {' '.join(self._command)}; it said:\n{said}")
                time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - began_s

    def memory_mib(self) -> float:
        """Of all of its processes; what they share counts once."""
        total = 0
        for process in self._processes():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 2**20

    def stop(self) -> None:
        """Asks it to end, and ends every process of it that is left. Raises RuntimeError where one stays."""
        assert self._process is not None
        if self._grace_s and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s)
        # One that is killed may have started another in between.
        for _ in range(MAX_KILLS):
            left = self._processes()
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        assert self._log is not None
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if left := self._processes():
            raise RuntimeError(f"still there: {left}")

    def _processes(self) -> list[psutil.Process]:
        return [each for each in psutil.Process().children(recursive=True) if each.pid not in self._others]
