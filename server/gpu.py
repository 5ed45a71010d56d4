"""Watches one GPU for the engine that computes on it, and says when that has to stop."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

from server.nvml import Device, DeviceGone, NvmlUnavailable, open_device
from server.xid import RECOVERY_ACTION_CHANGED, Policy, judge

# A wait for errors; `stop` lets the one in progress end, and gives up on one that is stuck in the driver.
WAIT_MS = 1000
STUCK_S = 5.0
# A wait that fails may fail at once; it is tried again this much later, and so many times in a row.
RETRY_S = 1.0
MAX_FAILURES = 10

log = structlog.get_logger()


class GpuMonitor:
    """Readings of one GPU, and a thread that waits for its errors.

    A GPU that NVML does not know here is not watched, which is said once: it can compute all the same, and
    a fault of it still shows in the CUDA calls.

    Attributes:
        on_lost: told once, with the reason, that the GPU must not be used any more. By the thread that found
            out: the one that waits for errors, that of `read`, or that of `start`.
        on_drain: told once, with the reason, that the GPU should be reset soon; never after `on_lost`.
        on_readings: given what each `read` has found, numbers by the names of the metrics without
            `tickring_`.
    """

    def __init__(
        self,
        uuid: str,
        *,
        on_lost: Callable[[str], None],
        on_drain: Callable[[str], None],
        on_readings: Callable[[dict[str, float]], None],
        nvml: Any = None,
    ) -> None:
        self._uuid = uuid
        self._nvml = nvml
        self._on_lost = on_lost
        self._on_drain = on_drain
        self._on_readings = on_readings
        self._device: Device | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._told: set[Policy] = set()
        self._telling = threading.Lock()
        self._xids = Counter[int]()  # of the waiting thread alone
        self._xid_total = 0

    def start(self) -> None:
        """Opens the GPU and starts waiting for its errors."""
        try:
            self._device = open_device(self._uuid, self._nvml)
            self._device.subscribe()
        except NvmlUnavailable as error:
            unwatched = "readings and errors" if self._device is None else "errors"
            log.warning("GPU is not watched", gpu=self._uuid, unwatched=unwatched, error=str(error))
            return
        except DeviceGone as error:
            self._gone(error)
            return
        self._thread = threading.Thread(
            target=self._wait_for_errors, args=(self._device,), name="gpu errors", daemon=True
        )
        self._thread.start()

    def read(self) -> dict[str, float]:
        """Takes the readings that can be had, and passes them on; none of a GPU not watched or lost."""
        if self._device is None or Policy.EXIT in self._told:
            return {}
        try:
            readings = self._device.read()
        except DeviceGone as error:
            self._gone(error)
            return {}
        readings["gpu_xid_total"] = self._xid_total
        self._on_readings(readings)
        return readings

    def stop(self) -> None:
        """Ends the thread and lets go of the GPU. Not from a callback, and not while `read` runs."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STUCK_S)
            if self._thread.is_alive():  # the driver still uses what close would free
                return
        if self._device is not None:
            self._device.close()
            self._device = None

    def _wait_for_errors(self, device: Device) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                xid = device.wait_for_xid(WAIT_MS)
                if xid is not None:
                    self._report(xid, device.recovery_action() if xid == RECOVERY_ACTION_CHANGED else None)
            except DeviceGone as error:
                self._gone(error)
                return
            except NvmlUnavailable as error:
                failures += 1
                if failures == MAX_FAILURES:
                    log.error("GPU no longer reports its errors", gpu=self._uuid, error=str(error))
                    return
                self._stopping.wait(RETRY_S)
            else:
                failures = 0

    def _report(self, xid: int, recovery_action: int | None) -> None:
        verdict = judge(xid, recovery_action)
        self._xids[xid] += 1
        self._xid_total += 1
        times = self._xids[xid]
        if times & (times - 1) == 0:  # 1, 2, 4, …: another program's errors must not fill our log
            log.warning(
                "GPU error",
                gpu=self._uuid,
                xid=xid,
                means=verdict.meaning,
                does=verdict.policy.value,
                times=times,
            )
        if verdict.policy is not Policy.LOG:
            self._tell(verdict.policy, f"Xid {xid}: {verdict.meaning}")

    def _gone(self, error: DeviceGone) -> None:
        self._tell(Policy.EXIT, f"NVML: {error}")

    def _tell(self, policy: Policy, reason: str) -> None:
        with self._telling:
            if not self._told.isdisjoint((policy, Policy.EXIT)):
                return
            self._told.add(policy)
        log.error(
            "GPU is lost" if policy is Policy.EXIT else "GPU wants a reset", gpu=self._uuid, reason=reason
        )
        (self._on_lost if policy is Policy.EXIT else self._on_drain)(reason)
