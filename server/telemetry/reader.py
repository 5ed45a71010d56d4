"""Makes the readings of a running service: of what is counted, measured, and known of its processes."""

import os
from collections.abc import Callable, Sequence

from scheduler import _ring
from scheduler.arena import Arena
from server.books import EngineState
from server.children import Child, Duty
from server.lineup import Lineup
from server.telemetry.monitors import GpuReadings, HostMonitor
from server.telemetry.reading import Known, read
from server.telemetry.totals import Totals
from server.telemetry.trace_counts import TraceCounts
from server.telemetry.trace_process import TraceProcess

SUPERVISOR = "supervisor"


class Reader:
    """One for a service. Belongs to the supervisor's event loop."""

    def __init__(
        self,
        arena: Arena,
        engines: Sequence[Child],
        frontends: Sequence[Child],
        device: Callable[[Child], str],
        traces: TraceProcess | None,
    ) -> None:
        """Args:
        engines: every chair.
        device: of a chair.
        traces: None where nothing is traced.
        """
        self._arena = arena
        self._chairs = engines
        self._device = device
        self._children = (*engines, *frontends, *([] if traces is None else [traces.child]))
        self._traces = traces
        self._host = HostMonitor(self._pids)
        self._gpus = GpuReadings()

    def start(self) -> None:
        """From now on host and processes are read once a second, by a thread."""
        self._host.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._host.stop()

    def engines(self) -> dict[int, EngineState]:
        """Those that are there, by index."""
        return {
            chair.index: EngineState(self._device(chair), chair.ready, chair.readings, chair.revision.lineup)
            for chair in self._chairs
            if chair.duty is not Duty.VACANT
        }

    def restarts(self) -> dict[str, int]:
        """By process, also of chairs that are vacant by now: a count does not go away."""
        return {
            child.name: child.restarts
            for child in self._children
            if child.duty is not Duty.VACANT or child.restarts
        }

    def read(self, lineup: Lineup) -> Totals:
        """A reading, made now. `lineup`: what is served."""
        there = [child for child in self._children if child.duty is not Duty.VACANT]
        engines = self.engines()
        traced = TraceCounts() if self._traces is None else self._traces.counts
        known = Known(
            lineup=lineup,
            engines=engines,
            up={SUPERVISOR: 1, **{child.name: int(child.alive) for child in there}},
            restarts=self.restarts(),
            readings={**self._host.readings(), **self._gpus.read(engines), **traced.by_metric()},
        )
        return read(self._arena, known, _ring.now_ns() / 1e9)

    def _pids(self) -> dict[str, int]:
        """Of what runs. For the thread: a process that ends meanwhile is there or not."""
        running = {
            child.name: process.pid for child in self._children if (process := child.process) is not None
        }
        return {SUPERVISOR: os.getpid(), **running}
