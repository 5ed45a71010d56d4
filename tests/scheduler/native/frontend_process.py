"""A front end in a process of its own, for test_two_processes.py.

Its arguments: the file descriptors of the arena, of its own eventfd and of the engine's, and what to do.
`ask` pushes one request, waits for its rows and prints them; `flood` prints one line and pushes until
it is killed.
"""

import json
import mmap
import os
import sys

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from tests.scheduler.native.native_world import ENGINE, is_readable

PATIENCE_S = 20
ROWS = 3


class Frontend:
    """Front end 0, whose input row says which request it belongs to and which of its rows it is."""

    def __init__(self, arena_fd: int, own_fd: int, engine_fd: int) -> None:
        buffer = np.frombuffer(mmap.mmap(arena_fd, os.fstat(arena_fd).st_size), np.uint8)
        self.arena = _ring.Arena.attach(buffer)
        self.inputs = self._words(buffer, self.arena.input_slab, self.arena.input_row_bytes)
        self.outputs = self._words(buffer, self.arena.output_slab, self.arena.output_row_bytes)
        self.port = _ring.FrontendPort(self.arena, 0, own_fd, [engine_fd])
        self.own_fd = own_fd

    def _words(self, buffer: npt.NDArray[np.uint8], start: int, row_bytes: int) -> npt.NDArray[np.uint32]:
        slots = self.arena.slots
        return buffer[start : start + slots * row_bytes].view(np.uint32).reshape(slots, -1)

    def push(self, request: int, slots: list[int]) -> None:
        for row, slot in enumerate(slots):
            self.inputs[slot, :2] = request, row
        now_ns = _ring.now_ns()
        assert self.port.push(
            ENGINE, 0, request % _ring.CLASSES, slots, now_ns, now_ns, _ring.NO_DEADLINE, request, False
        )

    def drain(self) -> list[int]:
        """Waits for at least one slot to come back."""
        while not (ended := self.port.drain()):
            if self.port.arm():
                assert is_readable(self.own_fd, PATIENCE_S), "nothing came back"
                self.port.woken()
        return [slot for slot, *_ in ended]


def ask(frontend: Frontend) -> None:
    slots = [2, 0, 1]
    frontend.push(7, slots)
    back: list[int] = []
    while len(back) < len(slots):
        back += frontend.drain()
    print(json.dumps({"back": back, "answers": frontend.outputs[slots, 0].tolist()}))


def flood(frontend: Frontend) -> None:
    print("pushing", flush=True)
    free = list(range(frontend.arena.slots_per_frontend))
    request = 0
    while True:
        while len(free) >= ROWS:
            slots, free = free[:ROWS], free[ROWS:]
            request += 1
            frontend.push(request, slots)
        free += frontend.drain()


if __name__ == "__main__":
    arena_fd, own_fd, engine_fd = map(int, sys.argv[1:4])
    {"ask": ask, "flood": flood}[sys.argv[4]](Frontend(arena_fd, own_fd, engine_fd))
