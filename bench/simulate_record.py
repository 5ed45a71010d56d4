"""What a real server did, batch by batch: read from the slot headers while it runs.

The engine stamps every slot of a batch when it completes it, and the stamps stay until the slot's next batch.
Looking often enough sees every batch. An answer names its queue wait and the compute time of its batch,
both to the nanosecond: together they give the instants at which its item was queued and dispatched.
"""

import statistics
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.lone_call import slot_stamps
from bench.server_process import ServerProcess
from bench.simulate_load import Answer

LOOK_EVERY_S = 0.001
# Of the answers, at least so many must be found in a batch.
MIN_FOUND = 0.9


class BatchLog:
    """Looks at the slots of a server, in a thread, between `start` and `stop`."""

    def __init__(self, server: ServerProcess) -> None:
        self._stamps = slot_stamps(server)
        self._seen: set[tuple[int, int]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def start(self) -> None:
        """Batches from now on are seen."""
        self._thread.start()

    def stop(self) -> list[tuple[int, int]]:
        """Dispatched and outputs ready, CLOCK_MONOTONIC ns, of every batch since `start`, in order."""
        self._stopping.set()
        self._thread.join()
        return sorted(self._seen)

    def _look(self) -> None:
        last = self._stamps["dispatched"].copy()
        while not self._stopping.wait(LOOK_EVERY_S):
            dispatched, end = self._stamps["dispatched"].copy(), self._stamps["compute_end"].copy()
            # Written in this order: an end before its dispatch is still that of the batch before.
            new = (dispatched != last) & (end > dispatched)
            self._seen.update(zip(dispatched[new].tolist(), end[new].tolist(), strict=True))
            last = np.where(new, dispatched, last)


@dataclass(frozen=True)
class Item:
    """One answered item: when it was queued, CLOCK_MONOTONIC, and how long it waited."""

    priority: str
    queued_ns: int
    wait_ns: int


@dataclass(frozen=True)
class Batch:
    """One batch, dispatched at `at_ns`; `gap_ns` to the next, None where nothing was due at its end."""

    at_ns: int
    bucket: int
    compute_ns: int
    gap_ns: int | None


@dataclass(frozen=True)
class Record:
    """A run of a real server.

    Attributes:
        items, batches: in the order of time.
        wakes: where an urgent item met an idle engine: when it was queued, and how long until its dispatch.
        found: share of the items whose batch was seen; the others are placed by their typical delay.
    """

    items: tuple[Item, ...]
    batches: tuple[Batch, ...]
    wakes: tuple[tuple[int, int], ...]
    found: float


def reconstruct(answers: Sequence[Answer], seen: Sequence[tuple[int, int]], urgent: str) -> Record:
    """Puts the answers and the batches of a run together.

    Args:
        seen: what `BatchLog` returned.
        urgent: the class that never waits for company.

    Raises:
        ValueError: too many answers are of no batch that was seen.
    """
    by_compute: dict[int, list[int]] = defaultdict(list)
    for dispatched_ns, end_ns in seen:
        by_compute[end_ns - dispatched_ns].append(dispatched_ns)
    dispatched: list[int | None] = []
    for answer in answers:
        about_ns = answer.sent_ns + answer.queue_wait_ns
        dispatched.append(min(by_compute[answer.compute_ns], key=lambda ns: abs(ns - about_ns), default=None))
    known = [(a, ns) for a, ns in zip(answers, dispatched, strict=True) if ns is not None]
    found = len(known) / len(answers)
    if found < MIN_FOUND:
        raise ValueError(f"only {found:.0%} of the answers belong to a batch that was seen")
    delay_ns = int(statistics.median(ns - a.queue_wait_ns - a.sent_ns for a, ns in known))

    items = []
    in_batch: dict[int, list[Answer]] = defaultdict(list)
    for answer, ns in zip(answers, dispatched, strict=True):
        if ns is None:
            queued_ns = answer.sent_ns + delay_ns
        else:
            queued_ns = ns - answer.queue_wait_ns
            in_batch[ns].append(answer)
        items.append(Item(answer.priority, queued_ns, answer.queue_wait_ns))
    batches, wakes = _batches(in_batch, urgent)
    items.sort(key=lambda item: item.queued_ns)
    return Record(tuple(items), tuple(batches), tuple(wakes), found)


def _batches(in_batch: dict[int, list[Answer]], urgent: str) -> tuple[list[Batch], list[tuple[int, int]]]:
    """The batches in order, and the wakes."""
    batches: list[Batch] = []
    wakes = []
    order = sorted(in_batch)
    largest = max(answer.bucket for of_batch in in_batch.values() for answer in of_batch)
    for at_ns, next_ns in zip(order, [*order[1:], None], strict=True):
        answer = in_batch[at_ns][0]
        end_ns = at_ns + answer.compute_ns
        gap_ns = None
        if next_ns is not None:
            waiting = [a for a in in_batch[next_ns] if next_ns - a.queue_wait_ns <= end_ns]
            urgent_waits_ns = [a.queue_wait_ns for a in in_batch[next_ns] if a.priority == urgent]
            # A full batch and an urgent item go as soon as the engine is free; others may wait for company.
            if len(waiting) == largest or any(a.priority == urgent for a in waiting):
                gap_ns = max(0, next_ns - end_ns)
            elif urgent_waits_ns:
                wakes.append((next_ns - max(urgent_waits_ns), max(urgent_waits_ns)))
        batches.append(Batch(at_ns, answer.bucket, answer.compute_ns, gap_ns))
    return batches, wakes
