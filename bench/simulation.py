"""The discrete-event loop: arrivals, batch ends and the policy's instants, on one virtual clock.

Replicas share nothing but the clock and the balancer before them. A run ends when the arrivals have
ended and everything admitted has, too.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import numpy.typing as npt

from bench.batch_times import BatchTimes, batch_times
from bench.replica import LET_IN_EVERY_NS, Replica, Request, instances, plan_of
from bench.scenario import Scenario
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch
from scheduler.partition import Outcome

# Instants of a run count from here: zero means "never" in some places of the arena.
START_NS = 1_000_000_000
REFUSED = max(Outcome) + 1


@dataclass(frozen=True)
class Arrivals:
    """All requests of a run, by number, in the order of their arrival; the same for any number of replicas.

    Attributes:
        at_ns, deadline_ns: int64 `[n]`, instants.
        class_index, rows: int64 `[n]`.
    """

    at_ns: npt.NDArray[np.int64]
    class_index: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    deadline_ns: npt.NDArray[np.int64]

    def __iter__(self) -> Iterator[tuple[int, Request]]:
        columns = (self.at_ns, self.class_index, self.rows, self.deadline_ns)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for number, (at_ns, class_index, row_count, deadline_ns) in enumerate(rows):
            yield at_ns, Request(number, class_index, row_count, deadline_ns)


@dataclass(frozen=True)
class Run:
    """What became of the requests.

    Attributes:
        instances: of all replicas.
        outcome: uint8 `[n]`, by number, an `Outcome` or REFUSED.
        wait_ns, ended_ns: int64 `[n]`, by number: queue wait, and the instant of the end; 0 where refused.
        refused: by class index and reason.
        busy_ns: instance time spent computing until the arrivals ended.
        batches, items: dispatched in all.
    """

    arrivals: Arrivals
    seconds: float
    replicas: int
    instances: int
    outcome: npt.NDArray[np.uint8]
    wait_ns: npt.NDArray[np.int64]
    ended_ns: npt.NDArray[np.int64]
    refused: Counter[tuple[int, str]]
    busy_ns: int
    batches: int
    items: int


def draw_arrivals(scenario: Scenario, seconds: float, seed: int) -> Arrivals:
    """The requests of every stream, merged. A stream does not depend on those beside it."""
    limits = scenario.server_settings().class_limits
    parts = []
    for number, stream in enumerate(scenario.streams):
        rng = np.random.default_rng([seed, 0, number])
        at_ns = START_NS + (stream.arrivals.draw(rng, seconds) * 1e9).astype(np.int64)
        timeout_ns = limits[stream.class_index].default_timeout_ns
        if stream.timeout_ms is not None:
            timeout_ns = round(stream.timeout_ms * 1e6)
        choices = (stream.rows,) if isinstance(stream.rows, int) else stream.rows
        parts.append(
            (
                at_ns,
                np.full(len(at_ns), stream.class_index, dtype=np.int64),
                rng.choice(np.array(choices, dtype=np.int64), len(at_ns)),
                at_ns + timeout_ns,
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return Arrivals(*(column[order] for column in columns))


def simulate(scenario: Scenario, replicas: int, seconds: float, seed: int) -> Run:
    """One run. The same arguments give the same run. Raises ValueError for what the device cannot run."""
    return _Simulation(scenario, replicas, seconds, seed).run()


class _Server:
    """A replica and its instances.

    Attributes:
        free: idle instances: those that take anything, and those reserved for urgent work.
        look_ns: the one instant at which an idle instance looks next; None: at the next push.
        lets_in: a round of its front ends is planned.
    """

    __slots__ = ("free", "lets_in", "look_ns", "number", "replica", "times")

    def __init__(self, number: int, replica: Replica, times: BatchTimes, free: list[int]) -> None:
        self.number = number
        self.replica = replica
        self.times = times
        self.free = free
        self.look_ns: int | None = None
        self.lets_in = False


class _Simulation:
    def __init__(self, scenario: Scenario, replicas: int, seconds: float, seed: int) -> None:
        settings = scenario.server_settings()
        self._seconds = seconds
        self._clock = VirtualClock(START_NS)
        self._end_ns = START_NS + round(seconds * 1e9)
        self._balance = {"round_robin": self._next, "least_outstanding": self._least}[scenario.balancer]
        self._turn = 0
        self._outstanding = [0] * replicas  # requests let in and not ended, by replica

        self._arrivals = draw_arrivals(scenario, seconds, seed)
        requests = len(self._arrivals.at_ns)
        self._outcome = bytearray(requests)
        self._wait = array("q", bytes(8 * requests))
        self._ended_at = array("q", bytes(8 * requests))
        self._server_of = array("i", bytes(4 * requests))
        self._refused: Counter[tuple[int, str]] = Counter()
        self._busy_ns = self._batches = self._items = 0

        # (instant, tie-breaker, what happens then)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._ties = count()
        self._servers = []
        for number in range(replicas):
            rng = np.random.default_rng([seed, 1, number])
            times = batch_times(scenario.device, plan_of(settings).buckets, rng)
            replica = Replica(settings, times.typical_ns(), self._clock, self._ended)
            self._servers.append(_Server(number, replica, times, list(instances(settings))))
        self._instances = replicas * sum(instances(settings))

    def run(self) -> Run:
        for at_ns, request in self._arrivals:
            self._happen(at_ns)
            self._clock.advance(at_ns - self._clock.now_ns())
            self._arrive(request)
        self._happen(None)
        for server in self._servers:
            server.replica.close()
        outcome = np.frombuffer(self._outcome, dtype=np.uint8)
        assert outcome.all(), "a request never ended"
        return Run(
            arrivals=self._arrivals,
            seconds=self._seconds,
            replicas=len(self._servers),
            instances=self._instances,
            outcome=outcome,
            wait_ns=np.frombuffer(self._wait, dtype=np.int64),
            ended_ns=np.frombuffer(self._ended_at, dtype=np.int64),
            refused=self._refused,
            busy_ns=self._busy_ns,
            batches=self._batches,
            items=self._items,
        )

    def _happen(self, until_ns: int | None) -> None:
        """All events up to an instant, those at it included; None: until nothing is left to happen."""
        events = self._events
        while events and (until_ns is None or events[0][0] <= until_ns):
            at_ns, _, action = heapq.heappop(events)
            self._clock.advance(at_ns - self._clock.now_ns())
            action()

    def _at(self, instant_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (instant_ns, next(self._ties), action))

    def _arrive(self, request: Request) -> None:
        number = self._balance()
        server = self._servers[number]
        self._server_of[request.number] = number
        self._outstanding[number] += 1
        reason = server.replica.submit(request)
        if reason is None:
            self._pushed(server)
            self._let_in_later(server)
        else:
            self._outstanding[number] -= 1
            self._outcome[request.number] = REFUSED
            self._refused[request.class_index, reason] += 1

    def _pushed(self, server: _Server) -> None:
        if any(server.free):
            now_ns = self._clock.now_ns()
            self._look_at(server, now_ns + server.times.wake_ns((now_ns - START_NS) / 1e9))

    def _let_in_later(self, server: _Server) -> None:
        """Plans the front ends' next round, if they hold something and none is planned."""
        if not server.lets_in and server.replica.holds:
            server.lets_in = True
            self._at(self._clock.now_ns() + LET_IN_EVERY_NS, partial(self._let_in, server))

    def _let_in(self, server: _Server) -> None:
        server.lets_in = False
        if server.replica.let_in():
            self._pushed(server)
        self._let_in_later(server)

    def _look_at(self, server: _Server, instant_ns: int) -> None:
        """An idle instance looks then, unless one does earlier."""
        if any(server.free) and (server.look_ns is None or instant_ns < server.look_ns):
            server.look_ns = instant_ns
            self._at(instant_ns, partial(self._look_as_planned, server, instant_ns))

    def _look_as_planned(self, server: _Server, planned_ns: int) -> None:
        if server.look_ns == planned_ns:  # otherwise an earlier look has come in between
            self._look(server)

    def _look(self, server: _Server) -> None:
        """Every idle instance looks, and takes what the policy gives it."""
        server.look_ns = None
        if self._outstanding[server.number] == 0:
            return  # nothing is queued
        now_ns = self._clock.now_ns()
        for reserved in (False, True):
            while server.free[reserved]:
                step = server.replica.poll(reserved=reserved)
                if isinstance(step, Batch):
                    server.free[reserved] -= 1
                    self._start(server, step, reserved)
                    continue
                if step is not None:
                    assert step > now_ns, f"the policy asks to be asked again {now_ns - step} ns ago"
                    self._look_at(server, step)
                break

    def _start(self, server: _Server, batch: Batch, reserved: bool) -> None:
        now_ns = self._clock.now_ns()
        compute_ns, gap_ns = server.times.next_ns(batch.bucket, (now_ns - START_NS) / 1e9)
        end_ns = now_ns + compute_ns
        self._busy_ns += max(0, min(end_ns, self._end_ns) - now_ns)
        self._batches += 1
        self._items += len(batch.slots)
        self._at(end_ns, partial(self._finish, server, batch, reserved, gap_ns))

    def _finish(self, server: _Server, batch: Batch, reserved: bool, gap_ns: int) -> None:
        if server.replica.complete(batch):
            self._pushed(server)
        self._at(self._clock.now_ns() + gap_ns, partial(self._free, server, reserved))

    def _free(self, server: _Server, reserved: bool) -> None:
        server.free[reserved] += 1
        self._look(server)

    def _ended(self, number: int, outcome: Outcome, wait_ns: int) -> None:
        self._outstanding[self._server_of[number]] -= 1
        assert not self._outcome[number], f"request {number} ended twice"
        self._outcome[number] = outcome
        self._wait[number] = wait_ns
        self._ended_at[number] = self._clock.now_ns()

    def _next(self) -> int:
        self._turn = (self._turn + 1) % len(self._servers)
        return self._turn

    def _least(self) -> int:
        """Of equals the next in turn, or the first ones would get all the load of quiet times."""
        turn, outstanding = self._next(), self._outstanding
        in_turn = outstanding[turn:] + outstanding[:turn]
        return (turn + in_turn.index(min(in_turn))) % len(outstanding)
