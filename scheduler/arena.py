"""The shared memory that front ends and engines meet in.

One memfd, mapped whole by every process; it has no name that could leak and goes away with the last
process. Over anonymous memory the same arena serves threads: unit tests, notebooks, the simulator.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler import _ring

# uint64 counters that each front end keeps of each model, behind what is native: no engine touches them.
# A multiple of 128 bytes, so that two front ends never write to neighbouring cache lines.
MODEL_BOOK_WORDS = 16


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What fixes the layout of an arena. Rows are rounded up to 64 bytes."""

    frontends: int
    models: int
    slots_per_frontend: int
    input_row_bytes: int
    output_row_bytes: int
    engines: int = 1

    def as_kwargs(self) -> dict[str, int]:
        """The same, as the native constructors take it."""
        return {
            "frontends": self.frontends,
            "engines": self.engines,
            "models": self.models,
            "slots_per_frontend": self.slots_per_frontend,
            "input_row_bytes": self.input_row_bytes,
            "output_row_bytes": self.output_row_bytes,
        }

    def total_bytes(self) -> int:
        """Room for an arena of these dimensions. Raises ValueError naming a bad one."""
        return _ring.arena_bytes(**self.as_kwargs()) + _books_bytes(self.frontends, self.models)


class Arena:
    """An arena as this process sees it.

    Attributes:
        native: lanes, slot headers and row copies; see `scheduler/native/`.
        input_rows: uint8 `[slots, input_row_bytes]`; a row belongs to the slot's owner.
        output_rows: uint8 `[slots, output_row_bytes]`; likewise.
        model_books: uint64 `[frontends, models, MODEL_BOOK_WORDS]`; a front end writes its own, anybody
            reads. They outlive front ends.
    """

    def __init__(self, native: _ring.Arena, buffer: npt.NDArray[np.uint8]) -> None:
        self.native = native
        self.input_rows = self._rows(buffer, native.input_slab, native.input_row_bytes)
        self.output_rows = self._rows(buffer, native.output_slab, native.output_row_bytes)
        books = buffer[buffer.size - _books_bytes(native.frontends, native.models) :]
        self.model_books = books.view(np.uint64).reshape(native.frontends, native.models, MODEL_BOOK_WORDS)

    @classmethod
    def anonymous(cls, dimensions: Dimensions) -> "Arena":
        """An arena for the threads of this process. Raises ValueError naming a bad dimension."""
        buffer = _as_array(mmap.mmap(-1, dimensions.total_bytes()))
        return cls(_ring.Arena.format(buffer, **dimensions.as_kwargs()), buffer)

    @classmethod
    def create(cls, dimensions: Dimensions) -> tuple["Arena", int]:
        """A new arena and the file descriptor by which other processes `attach` to it."""
        size = dimensions.total_bytes()
        fd = os.memfd_create("tickring-arena")
        os.ftruncate(fd, size)
        buffer = _as_array(mmap.mmap(fd, size))
        return cls(_ring.Arena.format(buffer, **dimensions.as_kwargs()), buffer), fd

    @classmethod
    def attach(cls, fd: int) -> "Arena":
        """Maps the arena behind `fd`. Raises ValueError when it is not one of this layout."""
        buffer = _as_array(mmap.mmap(fd, os.fstat(fd).st_size))
        return cls(_ring.Arena.attach(buffer), buffer)

    def _rows(self, buffer: npt.NDArray[np.uint8], start: int, row_bytes: int) -> npt.NDArray[np.uint8]:
        slots = self.native.slots
        return buffer[start : start + slots * row_bytes].reshape(slots, row_bytes)


def _books_bytes(frontends: int, models: int) -> int:
    return frontends * models * MODEL_BOOK_WORDS * 8


def _as_array(mapping: mmap.mmap) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mapping, dtype=np.uint8)
