"""
Lanes, completions and gates in shared memory; see the headers beside module.cpp.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray


CLASSES: int = 5

NO_DEADLINE: int = 18446744073709551615

MAX_FRONTENDS: int = 64

MAX_MODELS: int = 64

MAX_SLOTS_PER_FRONTEND: int = 65536

def now_ns() -> int:
    """CLOCK_MONOTONIC, nanoseconds."""

def arena_bytes(*, frontends: int, engines: int, models: int, slots_per_frontend: int, input_row_bytes: int, output_row_bytes: int) -> int:
    """Bytes an arena of these dimensions needs."""

class Arena:
    @staticmethod
    def format(buffer: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], *, frontends: int, engines: int, models: int, slots_per_frontend: int, input_row_bytes: int, output_row_bytes: int) -> Arena: ...

    @staticmethod
    def attach(buffer: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> Arena: ...

    @property
    def frontends(self) -> int: ...

    @property
    def engines(self) -> int: ...

    @property
    def models(self) -> int: ...

    @property
    def slots_per_frontend(self) -> int: ...

    @property
    def input_row_bytes(self) -> int: ...

    @property
    def output_row_bytes(self) -> int: ...

    @property
    def input_slab(self) -> int: ...

    @property
    def output_slab(self) -> int: ...

    @property
    def slot_headers(self) -> int: ...

    @property
    def slots(self) -> int: ...

    def epoch(self, arg: int, /) -> int: ...

    def reset_frontend(self, arg: int, /) -> None: ...

    def reset_engine(self, arg: int, /) -> None: ...

    def gather_inputs(self, slots: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], offset: int, into: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

    def scatter_outputs(self, slots: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], offset: int, rows: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

    def engine_stats(self, engine: int, /) -> dict[str, Any]:
        """Counters by name; `ended` is a list by outcome."""

class FrontendPort:
    def __init__(self, arena: Arena, frontend: int, eventfd: int, engine_eventfds: Sequence[int]) -> None: ...

    def push(self, engine: int, model: int, cls: int, slots: Sequence[int], key: int, enqueued_ns: int, deadline_ns: int, request: int, exclusive: bool) -> bool: ...

    def cancel(self, slot: int) -> None: ...

    def drain(self) -> list[tuple[int, int, int, int, int, int, int, int, int]]:
        """
        Slot, outcome, enqueued, dispatched, compute start and end (ns), batch, its size and bucket.
        """

    def arm(self) -> bool: ...

    def woken(self) -> None: ...

    @property
    def first_slot(self) -> int: ...

class EnginePort:
    def __init__(self, arena: Arena, engine: int, eventfd: int, frontend_eventfds: Sequence[int]) -> None: ...

    def look(self) -> list[tuple[int, int, int, int, int, int | None]]:
        """
        Model, class, depth, smallest key, oldest enqueue and soonest deadline (ns), where depth > 0.
        """

    def take(self, model: int, now_ns: int, expected_ns: int, into: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')]) -> int: ...

    def complete(self, slots: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], outcomes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dispatched_ns: int, compute_start_ns: int, compute_end_ns: int, batch: int, bucket: int) -> None: ...

    def discard(self, frontend: int) -> int: ...

    def wait(self, timeout_ns: int, spin_ns: int) -> bool: ...

    def wake(self) -> None: ...
