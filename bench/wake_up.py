"""How long an engine sleeps on after a push, beside a thread that sleeps at an eventfd: for gates."""

import os
import threading
import time
from collections.abc import Iterator

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.partition import Outcome, Partition

ROUNDS = 300
PAUSE_S = 0.001
# An engine that nobody wakes looks by itself after this.
LOOK_NS = 20_000_000


def wake_up_us(part: float, *, lose: bool = False) -> tuple[float, float]:
    """A quantile of push to look, and of a write to an eventfd to its reader; `lose`: nobody rings."""
    return float(np.quantile(_pushes_s(lose), part)) * 1e6, float(np.quantile(_writes_s(), part)) * 1e6


def _pushes_s(lose: bool) -> list[float]:
    arena = Arena.anonymous(Dimensions(1, 1, 4, 64, 64))
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    partition = Partition(arena, 0, fds[0], [fds[2] if lose else fds[1]])
    port = _ring.EnginePort(arena.native, 0, fds[1], [fds[0]])
    slots, outcomes = np.empty(1, np.uint32), np.array([Outcome.RESULT], np.uint8)
    pushed_s, times = [0.0], list[float]()

    def engine() -> None:
        while len(times) < ROUNDS:
            port.wait(LOOK_NS, 0)
            now_s, now_ns = time.monotonic(), _ring.now_ns()
            if port.look() and port.take(0, now_ns, 0, slots):
                port.complete(slots, outcomes, now_ns, now_ns, now_ns, 1, 1)
                times.append(now_s - pushed_s[0])

    thread = threading.Thread(target=engine)
    thread.start()
    for _ in _once_noticed(times):
        partition.drain()
        submission = partition.reserve(1, 0, 0, partition.release)
        now_ns = _ring.now_ns()
        pushed_s[0] = time.monotonic()
        partition.push(
            submission,
            engine=0,
            key=now_ns,
            enqueued_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE,
            exclusive=False,
        )
    thread.join()
    for fd in fds:
        os.close(fd)
    return times


def _writes_s() -> list[float]:
    fd = os.eventfd(0)
    written_s, times = [0.0], []

    def reader() -> None:
        for _ in range(ROUNDS):
            os.eventfd_read(fd)
            times.append(time.monotonic() - written_s[0])

    thread = threading.Thread(target=reader)
    thread.start()
    for _ in _once_noticed(times):
        written_s[0] = time.monotonic()
        os.eventfd_write(fd, 1)
    thread.join()
    os.close(fd)
    return times


def _once_noticed(times: list[float]) -> Iterator[None]:
    """For each round, once that before it has been noticed and the other side has had time to fall asleep."""
    for number in range(ROUNDS):
        while len(times) < number:
            time.sleep(PAUSE_S)
        time.sleep(PAUSE_S)
        yield
