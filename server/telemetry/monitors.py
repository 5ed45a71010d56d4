"""Readings of the host, of the processes of a service, and of its GPUs: by metric name and label.

What counts up never goes back: where its source starts anew, with another process, the count goes on.
"""

import threading
from collections.abc import Callable, Iterable, Mapping

import psutil
import structlog

from server.books import EngineState
from server.telemetry import names

EVERY_S = 1.0
# The first reading of the CPU needs two looks, this far apart: nobody should have to wait for the second.
FIRST_LOOK_S = 0.1

Readings = dict[tuple[str, str], float]

log = structlog.get_logger()


class Odometer:
    """Counts that go on where their source starts anew: by any key."""

    def __init__(self) -> None:
        self._past: dict[tuple[str, ...], float] = {}
        self._last: dict[tuple[str, ...], float] = {}

    def read(self, key: tuple[str, ...], value: float) -> float:
        """All that has been counted, if the source says `value` now."""
        last = self._last.get(key, 0.0)
        if value < last:
            self._past[key] = self._past.get(key, 0.0) + last
        self._last[key] = value
        return self._past.get(key, 0.0) + value

    def items(self) -> Iterable[tuple[tuple[str, ...], float]]:
        """As of the last time that each was read."""
        return [(key, self._past.get(key, 0.0) + last) for key, last in self._last.items()]


class HostMonitor:
    """A thread that reads the host and the processes once a second; it touches no event loop.

    CPU and memory are those of the host, also where a container may use less.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        """`pids`: by name of a process that runs now; called by the thread."""
        self._pids = pids
        self._processes: dict[str, psutil.Process] = {}
        self._cpu_s = Odometer()
        self._newest: Readings = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host readings", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it, if it was started."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def readings(self) -> Readings:
        """The newest; none before the first look is over. From any thread."""
        return self._newest

    def look(self, interval_s: float | None = None) -> None:
        """Takes one. `interval_s`: how long the CPU is watched; None: since the look before."""
        used = psutil.cpu_percent(interval=interval_s) / 100
        found: Readings = {
            (names.CPU_UTILIZATION.name, ""): used,
            (names.MEMORY_UTILIZATION.name, ""): psutil.virtual_memory().percent / 100,
        }
        for name, pid in self._pids().items():
            try:
                found |= self._process(name, pid)
            except psutil.Error:  # it has just ended
                self._processes.pop(name, None)
        for (name,), cpu_s in self._cpu_s.items():
            found[names.PROCESS_CPU.name, name] = cpu_s
        self._newest = found

    def _process(self, name: str, pid: int) -> Readings:
        process = self._processes.get(name)
        if process is None or process.pid != pid:
            process = self._processes[name] = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
        self._cpu_s.read((name,), times.user + times.system)
        return {(names.PROCESS_RESIDENT.name, name): memory.rss}

    def _run(self) -> None:
        try:
            self.look(FIRST_LOOK_S)
            while not self._stopping.wait(EVERY_S):
                self.look()
        except Exception:
            # A bug, and no request's; what is shown stays as it is.
            log.exception("host and processes are no longer read")


class GpuReadings:
    """What engines have told of their GPUs. Belongs to the supervisor's event loop."""

    def __init__(self) -> None:
        self._xids = Odometer()

    def read(self, engines: Mapping[int, EngineState]) -> Readings:
        """By GPU, as the device of its engine is numbered. `engines`: by index, those that are there."""
        found: Readings = {}
        for index, engine in engines.items():
            gpu = engine.device.removeprefix("cuda:")
            for name, value in engine.readings.items():
                if f"tickring_{name}" == names.GPU_XID.name:  # each process counts its own
                    self._xids.read((gpu, str(index)), value)
                else:
                    found[f"tickring_{name}", gpu] = value
        for (gpu, _), count in self._xids.items():
            key = (names.GPU_XID.name, gpu)
            found[key] = found.get(key, 0) + count
        return found
