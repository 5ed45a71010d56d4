"""Sending on time, to the microsecond: timers of an event loop round up to a millisecond."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Ticker:
    """Wakes the event loop at an instant."""

    _TFD_NONBLOCK = os.O_NONBLOCK
    _TFD_TIMER_ABSTIME = 1

    def __init__(self, wake: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, self._TFD_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._wake = wake
        asyncio.get_running_loop().add_reader(self._fd, self._ticked)

    def at(self, instant_s: float) -> None:
        """Calls `wake` once then, CLOCK_MONOTONIC; at once when that is over."""
        seconds, nanos = divmod(max(1, int(instant_s * 1e9)), 1_000_000_000)
        # struct itimerspec: interval, then value; seconds and nanoseconds each.
        spec = (ctypes.c_long * 4)(0, 0, seconds, nanos)
        if self._libc.timerfd_settime(self._fd, self._TFD_TIMER_ABSTIME, spec, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """It wakes nobody any more."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _ticked(self) -> None:
        os.read(self._fd, 8)
        self._wake()


async def send_on_time(
    upcoming: Iterator[tuple[float, T]],
    send: Callable[[float, T], None],
    stopped: asyncio.Event | None = None,
) -> None:
    """Calls `send` at each instant, time.monotonic() seconds, ascending; returns after the last, or once
    `stopped` is set.
    """
    due = next(upcoming, None)
    all_sent = asyncio.Event()

    def send_due() -> None:
        nonlocal due
        while due is not None and due[0] <= time.monotonic():
            send(*due)
            due = next(upcoming, None)
        if due is None:
            all_sent.set()
        else:
            ticker.at(due[0])

    ticker = Ticker(send_due)
    send_due()
    waits = [asyncio.ensure_future(event.wait()) for event in (all_sent, stopped) if event is not None]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ticker.close()
        for wait in waits:
            wait.cancel()
