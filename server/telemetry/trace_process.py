"""The telemetry process as the supervisor sees it: started, restarted, told to end. Nobody waits for it."""

import asyncio
import os
import secrets
from collections.abc import Sequence

import structlog

from server import control
from server.boot import Boot
from server.children import Child, Duty
from server.revision import Revision
from server.telemetry.trace_counts import TraceCounts
from server.telemetry.trace_records import channel

# What a collector gets to take the rest, at the end of the service.
STOP_S = 5.0
# Between what the process is given to end and its being killed.
KILL_MARGIN_S = 0.5

log = structlog.get_logger()


class TraceProcess:
    """One place for it. Belongs to the supervisor's event loop.

    Attributes:
        child: the place.
    """

    def __init__(self, revision: Revision, devices: Sequence[str]) -> None:
        """`devices`: of the engines, as `Boot` has it for this process."""
        self.child = Child("telemetry", 0, Duty.SERVING, revision)
        self._devices = ",".join(devices)
        self._sending, self._receiving = channel()
        self._past = TraceCounts()  # of processes that are gone
        self._present = TraceCounts()
        self._ended = asyncio.Event()
        self._stopping = False

    @property
    def records_fd(self) -> int:
        """Where front ends send their records; they inherit it."""
        return self._sending.fileno()

    @property
    def counts(self) -> TraceCounts:
        """Since the service started."""
        return self._past + self._present

    def start(self) -> None:
        """Starts the process, or tries again soon; not while the service ends."""
        if self._stopping:
            return
        child = self.child
        revision = child.revision
        boot = Boot(
            role=child.role,
            index=child.index,
            parent_pid=os.getpid(),
            arena_fd=-1,
            frontend_eventfds=(),
            engine_eventfds=(),
            revision=revision.number,
            settings=revision.settings.model_dump_json(),
            lineup="",
            grpc_port=0,
            device=self._devices,
            boot_id=secrets.randbits(63),
            records_fd=self._receiving.fileno(),
        )
        try:
            child.start(boot, self._heard, self._exited)
        except OSError as error:
            child.not_started(error)
            asyncio.get_running_loop().call_later(child.restart_delay_s, self.start)

    def change(self, revision: Revision) -> None:
        """Goes by these settings from now on."""
        self.child.revision = revision
        self.child.tell({"type": "change", "log_level": revision.settings.telemetry.log_level})

    def kill(self) -> None:
        """Ends the process at once; there will be no other."""
        self._stopping = True
        self.child.kill()

    async def stop(self, within_s: float) -> None:
        """Ends the process once the collector has the rest, or it is time."""
        self._stopping = True
        within_s = min(STOP_S, within_s)
        self.child.tell({"type": "stop", "within_s": within_s})
        if self.child.alive:
            try:
                await asyncio.wait_for(self._ended.wait(), within_s + KILL_MARGIN_S)
            except TimeoutError:
                self.child.kill()
                await self._ended.wait()
        self._sending.close()
        self._receiving.close()

    def _heard(self, message: control.Message | None) -> None:
        if message is None:
            return  # its exit says the rest
        match message["type"]:
            case "ready":
                self.child.ready = True
            case "traced":
                self._present = TraceCounts(**message["counts"])
            case other:
                raise AssertionError(f"unknown control message {other}")

    def _exited(self) -> None:
        child = self.child
        code = child.ended(self._heard)
        self._past, self._present = self.counts, TraceCounts()
        if self._stopping:
            self._ended.set()
            return
        log.error("child died", child=child.name, code=code)
        child.restarts += 1
        # What it would have told until it is back waits in the socket.
        asyncio.get_running_loop().call_later(child.restart_delay_s, self.start)
