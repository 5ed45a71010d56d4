"""The bare ports of one arena in this process, without what `scheduler/` builds on them."""

import mmap
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scheduler import _ring

ENGINE = 0
RESULT, ERROR, NON_FINITE, EXPIRED, CANCELLED, LOST = range(1, 7)
ALL_CLASSES = (1 << _ring.CLASSES) - 1


def is_readable(fd: int, timeout_s: float = 0) -> bool:
    """Whether an eventfd has been signalled and not cleared."""
    return bool(select.select([fd], [], [], timeout_s)[0])


@dataclass
class NativeWorld:
    """Front ends and one engine, over anonymous memory or over a memfd that other processes can map."""

    frontends: int = 2
    models: int = 1
    slots: int = 4
    row_bytes: int = 64
    shared: bool = False
    arena_fd: int | None = None

    def __post_init__(self) -> None:
        self.dimensions = {
            "frontends": self.frontends,
            "engines": 1,
            "models": self.models,
            "slots_per_frontend": self.slots,
            "input_row_bytes": self.row_bytes,
            "output_row_bytes": self.row_bytes,
        }
        size = _ring.arena_bytes(**self.dimensions)
        if self.shared:
            self.arena_fd = os.memfd_create("test-arena")
            os.ftruncate(self.arena_fd, size)
        self.buffer = np.frombuffer(mmap.mmap(self.arena_fd or -1, size), np.uint8)
        self.arena = _ring.Arena.format(self.buffer, **self.dimensions)
        self.frontend_fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.frontends)]
        self.engine_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.ports = [self.new_frontend(frontend) for frontend in range(self.frontends)]
        self.engine = self.new_engine()

    def close(self) -> None:
        for fd in (*self.frontend_fds, self.engine_fd, self.arena_fd):
            if fd is not None:
                os.close(fd)

    def new_frontend(self, frontend: int) -> _ring.FrontendPort:
        """As the process that takes the place of a dead one would."""
        return _ring.FrontendPort(self.arena, frontend, self.frontend_fds[frontend], [self.engine_fd])

    def new_engine(self) -> _ring.EnginePort:
        """As the process that takes the place of a dead one would."""
        return _ring.EnginePort(self.arena, ENGINE, self.engine_fd, self.frontend_fds)

    def partition(self, frontend: int) -> list[int]:
        """All slots of a front end."""
        return list(range(frontend * self.slots, (frontend + 1) * self.slots))

    def push(self, frontend: int, slots: Sequence[int], cls: int = 0, key: int = 1) -> bool:
        """Pushes the rows of one plain request to the first model."""
        return self.ports[frontend].push(ENGINE, 0, cls, slots, key, key, _ring.NO_DEADLINE, 0, False)

    def take(
        self,
        count: int = 64,
        model: int = 0,
        now_ns: int = 0,
        expected_ns: int = 0,
        classes: int = ALL_CLASSES,
    ) -> list[int]:
        """Slots in the order in which the engine gets them."""
        into = np.empty(count, np.uint32)
        taken = self.engine.take(model, now_ns, expected_ns, into, classes)
        return [int(slot) for slot in into[:taken]]

    def complete(self, slots: Sequence[int], outcomes: Sequence[int] | None = None) -> None:
        """Completes slots, with RESULT if not said otherwise."""
        outcomes = [RESULT] * len(slots) if outcomes is None else outcomes
        self.engine.complete(np.array(slots, np.uint32), np.array(outcomes, np.uint8), 0, 0, 0, 1, len(slots))


def uint32(*values: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array(values, np.uint32)
