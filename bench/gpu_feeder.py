"""A front end process without gRPC: keeps rows of its partition queued, and says what became of them.

    python -m bench.gpu_feeder ARENA_FD FRONTEND OWN_EVENTFD ENGINE_EVENTFD SPIN_US

One JSON object a line: a `Load` on stdin, its `Fed` on stdout, until stdin ends. The rows lie in the slots
of the arena before the first load, as rows that a front end has received do; a row of another process's
memory is what an engine gets. Knows no torch.
"""

import contextlib
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.clock import MonotonicClock
from scheduler.partition import Outcome, Partition, Submission

# So many different rows; what lies in the others repeats them.
DIFFERENT_ROWS = 64
# An engine that completes nothing for so long is gone.
STALL_MS = 30_000


@dataclass(frozen=True)
class Load:
    """Requests of one class to one model, for so many seconds.

    Attributes:
        rows: of each request.
        outstanding: requests that are always queued or running; or 0, and
        rate_per_s: requests that are sent at even intervals, whatever becomes of them.
        slack_ns: key minus the time of queueing.
        note_latency: whether `Fed` tells it of each request; a long load would be a lot to tell.
        poison_every: each so many-th request has `poison` as the first element of its first row; 0: none.
    """

    seconds: float
    rows: int = 1
    outstanding: int = 0
    rate_per_s: float = 0.0
    model: int = 0
    class_index: int = 0
    slack_ns: int = 0
    note_latency: bool = True
    poison_every: int = 0
    poison: float = math.nan


@dataclass
class Fed:
    """What became of a load.

    Attributes:
        outcomes: of the requests without poison, by name; of a request of several rows the worst one.
        poisoned: of those with it.
        latency_us: of each request, queued to outputs ready.
        skipped: requests of an open load for which there was no slot.
    """

    rows: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    poisoned: dict[str, int] = field(default_factory=dict)
    latency_us: list[float] = field(default_factory=list)
    skipped: int = 0


class Stalled(Exception):
    """Nothing has come back for `STALL_MS`."""


class Feeder:
    """One partition and the thread that owns it."""

    def __init__(
        self, arena: Arena, frontend: int, eventfd: int, engine_eventfd: int, spin_ns: int = 0
    ) -> None:
        self._arena = arena
        self._partition = Partition(arena, frontend, eventfd, [engine_eventfd])
        self._clock = MonotonicClock()
        self._spin_ns = spin_ns
        self._poll = select.poll()
        self._poll.register(eventfd, select.POLLIN)
        self._first_slot = frontend * arena.native.slots_per_frontend
        self._out = 0
        self._sent = 0

    def write_rows(self, seed: int) -> None:
        """Standard normal float32 in every input row."""
        rows = self._arena.input_rows[self._first_slot :][: self._arena.native.slots_per_frontend]
        values = rows.view(np.float32)
        different = np.random.default_rng(seed).standard_normal(
            (min(DIFFERENT_ROWS, len(values)), values.shape[1]), dtype=np.float32
        )
        for at in range(0, len(values), len(different)):
            part = values[at : at + len(different)]
            part[:] = different[: len(part)]

    def run(self, load: Load) -> Fed:
        """Feeds until the time is over and all that was sent has ended. Raises Stalled."""
        fed = Fed()
        ends_ns = self._clock.now_ns() + int(load.seconds * 1e9)
        if load.rate_per_s:
            self._open(load, fed, ends_ns)
        else:
            for _ in range(load.outstanding):
                self._send(load, fed, partial(self._again, load, fed, ends_ns))
        while self._out:
            self._await()
        return fed

    def _open(self, load: Load, fed: Fed, ends_ns: int) -> None:
        interval_ns = int(1e9 / load.rate_per_s)
        due_ns = self._clock.now_ns()
        while due_ns < ends_ns:
            self._partition.drain()
            left_ns = due_ns - self._clock.now_ns()
            if left_ns <= 0:
                if self._partition.free_slots >= load.rows:
                    self._send(load, fed, lambda: None)
                else:
                    fed.skipped += 1
                due_ns += interval_ns
            elif left_ns > 2_000_000:
                time.sleep(0.001)
            else:
                os.sched_yield()  # a timer of a millisecond would be late

    def _again(self, load: Load, fed: Fed, ends_ns: int) -> None:
        if self._clock.now_ns() < ends_ns:
            self._send(load, fed, partial(self._again, load, fed, ends_ns))

    def _send(self, load: Load, fed: Fed, then: Callable[[], None]) -> None:
        self._sent += 1
        poisoned = bool(load.poison_every) and self._sent % load.poison_every == 0
        now_ns = self._clock.now_ns()
        clean: list[float] = []  # what the poison took the place of

        def ended(submission: Submission) -> None:
            ends = fed.poisoned if poisoned else fed.outcomes
            name = submission.outcome.name
            ends[name] = ends.get(name, 0) + 1
            if submission.outcome is Outcome.RESULT:
                fed.rows += load.rows
                if load.note_latency:
                    fed.latency_us.append((submission.compute_end_ns - now_ns) / 1e3)
            if poisoned:
                self._first_element(submission)[0] = clean[0]
            self._partition.release(submission)
            self._out -= 1
            then()

        submission = self._partition.reserve(load.rows, load.model, load.class_index, ended)
        if poisoned:
            first = self._first_element(submission)
            clean.append(float(first[0]))
            first[0] = load.poison
        self._out += 1
        self._partition.push(
            submission,
            engine=0,
            key=now_ns + load.slack_ns,
            enqueued_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE,
            exclusive=False,
        )

    def _first_element(self, submission: Submission) -> npt.NDArray[np.float32]:
        element: npt.NDArray[np.float32] = self._arena.input_rows[submission.slots[0]][:4].view(np.float32)
        return element

    def _await(self) -> None:
        """Ends what has come back; waits for it if nothing has."""
        spins_until_ns = self._clock.now_ns() + self._spin_ns
        while not self._partition.drain():
            if self._clock.now_ns() >= spins_until_ns:
                if not self._sleep(STALL_MS):
                    raise Stalled(f"{self._out} requests are out, none came back for {STALL_MS / 1000:g} s")
                return

    def _sleep(self, timeout_ms: int) -> bool:
        """Ends what comes back within the time; whether anything did, or nothing is out."""
        self._partition.sleep()  # which may end the last that is out
        if self._out and not self._poll.poll(timeout_ms):
            return False
        self._partition.woken()
        return True


def main() -> None:
    """Feeds what stdin says."""
    arena_fd, frontend, eventfd, engine_eventfd, spin_us = map(int, sys.argv[1:])
    feeder = Feeder(Arena.attach(arena_fd), frontend, eventfd, engine_eventfd, spin_us * 1000)
    feeder.write_rows(seed=frontend)
    print("{}", flush=True)
    for line in sys.stdin:
        try:
            print(json.dumps(asdict(feeder.run(Load(**json.loads(line))))), flush=True)
        except Stalled as error:
            print(json.dumps({"stalled": str(error)}), flush=True)
            return


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
