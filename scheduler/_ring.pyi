"""
Lanes, completions and gates in shared memory; see the headers beside module.cpp.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy
import numpy.typing
from numpy.typing import NDArray


CLASSES: int = 5

NO_DEADLINE: int = 18446744073709551615

MAX_FRONTENDS: int = 64

MAX_MODELS: int = 64

MAX_BUCKETS: int = 64

MAX_SLOTS_PER_FRONTEND: int = 65536

def now_ns() -> int:
    """CLOCK_MONOTONIC, nanoseconds."""

def all_finite(data: bytes, float_bytes: int) -> bool:
    """
    Whether no float among these, of 2, 4 or 8 bytes each and one after the other, is NaN or infinite.
    """

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

    def deadlines(self, slots: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], into: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu')]) -> None:
        """
        Copies the deadline (ns) of each slot; NO_DEADLINE: none. For the owner of the slots.
        """

    def engine_stats(self, engine: int, /) -> dict[str, Any]:
        """
        Counters by name; `ended` is a list by outcome. What is not `completed` or `lost` of what was `taken` is in a batch.
        """

    def frontend_stats(self, frontend: int) -> dict[str, Any]:
        """
        `admitted`, `corrupt`, and `ended`: a list by outcome, the last of them LOST.
        """

    def free_slots(self, frontend: int) -> int:
        """What that front end last published."""

    def engine_progress(self, engine: int) -> tuple[int, int]:
        """
        Items queued or in a batch, and a count that changes with whatever the engine does to one.
        """

    def frontend_progress(self, frontend: int) -> tuple[int, int]:
        """
        Completions not drained, and a count that changes with every drain of one.
        """

    def depth(self, engine: int, model: int, cls: int) -> int:
        """Items queued, over all front ends."""

    def forecast(self, engine: int, model: int) -> dict[str, Any]:
        """
        `target` (items), `item_ns`, and `buckets`: tuples of size, median, high and floor (ns).
        """

    def free_at_ns(self, engine: int) -> int:
        """When an instance is expected to be free; 0: one is."""

    def request_counts(self, row: int, cls: int) -> dict[str, Any]:
        """
        Over all front ends. Lists: `codes`, `shed` by reason, `request` and `queue_wait` by bucket; sums: `request_ns`, `queue_wait_ns`; `exemplars`: bucket, trace id, its duration and when (ns since 1970).
        """

    def batch_counts(self, row: int) -> dict[str, Any]:
        """
        Over all engines. `sizes` by bucket of batch_size_bounds(), `rows`, `padding`, and `compute`: tuples of batch bucket, counts and sum (ns); of batch bucket 0 what has no position of its own.
        """

    def held(self, model: int, cls: int) -> int:
        """Items held at the entrance, over all front ends."""

    def in_flight(self, engine: int) -> int:
        """Batches, as that engine last published."""

def duration_bounds_ns() -> list[int]:
    """Upper bounds, inclusive, of the buckets of every duration."""

def batch_size_bounds() -> list[int]:
    """Likewise of batch sizes."""

OTHER_MODELS: int = 64

NO_MODEL: int = 65

NO_CLASS: int = 5

CODES: int = 17

REASONS: int = 8

NO_REASON: int = 8

class RequestRecorder:
    def __init__(self, arena: Arena, frontend: int) -> None: ...

    def ended(self, row: int, cls: int, code: int, request_ns: int, queue_wait_ns: int) -> None:
        """`queue_wait_ns` below 0: it was never dispatched."""

    def refused(self, row: int, cls: int, code: int, reason: int) -> None:
        """Counts without durations. `reason` NO_REASON: it was not shed."""

    def exemplar(self, row: int, cls: int, request_ns: int, trace_id: bytes, at_ns: int) -> None:
        """
        `trace_id`: 16 bytes. `at_ns`: since 1970. The newest of each bucket is kept.
        """

class Scatter:
    def __init__(self, arena: Arena, places: Sequence[tuple[str, int, int, int]]) -> None:
        """
        `places`: name, offset in the row, bytes of an item, and bytes of an element that must be finite (0: any) of each output.
        """

    def run(self, slots: numpy.typing.NDArray[numpy.uint32], outputs: Sequence[numpy.typing.NDArray[Any]], bucket: int, outcomes: numpy.typing.NDArray[numpy.uint8]) -> None:
        """
        Row i of each output, `[bucket, ...]`, to slots[i]; outcomes[i] is RESULT or NON_FINITE. ValueError or TypeError naming the output that does not fit; nothing is copied then.
        """

class FrontendPort:
    def __init__(self, arena: Arena, frontend: int, eventfd: int, engine_eventfds: Sequence[int]) -> None: ...

    def push(self, engine: int, model: int, cls: int, slots: Sequence[int], key: int, enqueued_ns: int, deadline_ns: int, request: int, exclusive: bool) -> bool: ...

    def cancel(self, slot: int) -> None: ...

    def drain(self) -> list[tuple[int, int, int, int, int, int, int, int, int]]:
        """
        Slot, outcome, enqueued, dispatched, compute start and end (ns), batch, its size and bucket.
        """

    def publish_free_slots(self, count: int) -> None: ...

    def publish_held(self, model: int, cls: int, items: int) -> None: ...

    def end_unqueued(self, count: int, outcome: int) -> None:
        """
        Notes that `count` items were admitted and ended here without ever being pushed.
        """

    def lose(self, count: int) -> None:
        """
        Notes that `count` open items ended here as LOST. ValueError when fewer are open.
        """

    def depths(self, engine: int) -> list[int]:
        """
        Items that wait for an engine, by class, over all front ends and models.
        """

    def backlog_ns(self, engine: int) -> list[int]:
        """What those items cost in engine time, by the engine's forecast."""

    def arm(self) -> bool: ...

    def woken(self) -> None: ...

    @property
    def first_slot(self) -> int: ...

class EnginePort:
    def __init__(self, arena: Arena, engine: int, eventfd: int, frontend_eventfds: Sequence[int], models: int = 18446744073709551615, rows: Sequence[int] = []) -> None:
        """
        `models`: a bit for each that the engine serves; the lanes of the others stay empty. `rows`: by model, where its batches are counted; past its end, in the row of the model's own number.
        """

    def look(self) -> list[tuple[int, int, int, int, int, int | None]]:
        """
        Model, class, depth, smallest key, oldest enqueue and soonest deadline (ns), where depth > 0.
        """

    def take(self, model: int, now_ns: int, expected_ns: int, into: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')], classes: int = 31) -> int:
        """
        Fills `into` and returns how many. `classes`: a bit for each it may take, bit 0 the most urgent.
        """

    def complete(self, slots: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], outcomes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], dispatched_ns: int, compute_start_ns: int, compute_end_ns: int, batch: int, bucket: int) -> None: ...

    def discard(self, frontend: int) -> int: ...

    def publish_forecast(self, model: int, target: int, item_ns: int, sizes: Sequence[int], median_ns: Sequence[int], high_ns: Sequence[int], floor_ns: Sequence[int]) -> None:
        """
        The last four by bucket. ValueError naming one that is too long or of another length.
        """

    def count_batch(self, model: int, size: int, bucket: int, compute_ns: int) -> None: ...

    def publish_in_flight(self, batches: int) -> None: ...

    def publish_free_at(self, ns: int) -> None:
        """When an instance will be free; 0: one is."""

    def wait(self, timeout_ns: int, spin_ns: int) -> bool: ...

    def wake(self) -> None: ...
