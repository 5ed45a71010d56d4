"""A load process that offers calls of several priority classes at once, whatever becomes of them.

    echo '{"target": …, "flows": […]}' | python -m bench.open_loop

An open flow sends at the instants of a Poisson process, drawn beforehand, and counts latency from the
instant at which a call should have been sent: a server, or a load process, that falls behind cannot hide
it. A closed flow keeps a number of calls in flight. A refused call is not tried again. When the load
process itself was late, it reports nothing and exits with 75, "try again".
"""

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from bench import heavy_model
from client import Client, PredictionError, RetryPolicy
from client.load.pacing import send_on_time
from client.stream import MAX_IN_FLIGHT

RESULT = "RESULT"
UNFINISHED = "unfinished"
# A load process whose sends were later than this, one in a hundred or more, has not offered what it says.
MAX_LAG_MS = 20.0
# What a caller of a closed flow does after a failure, so that a refusing server is not hammered.
PAUSE_S = 0.005
# Calls before the clock starts, so that every RPC stream is open.
WARM_UP_TIMEOUT_S = 20.0
START_TIMEOUT_S = 60.0
ATTEMPTS = 3
_START_DELAY_S = 0.05


@dataclass(frozen=True)
class Flow:
    """Calls of one priority class: `rate_per_s` of an open flow, or `in_flight` of a closed one.

    `timeout_s` runs from the instant at which a call should be sent. Calls are spread over `clients`
    connections of one RPC stream each, which together must hold all that is in flight. `model` may name one
    that the server does not have: such calls cost what a refusal does, and the engine nothing.
    """

    priority: str
    timeout_s: float
    rate_per_s: float = 0.0
    in_flight: int = 0
    clients: int = 1
    model: str = ""


@dataclass
class FlowResult:
    """What became of the calls of one flow.

    `ends` counts all of them: RESULT, a status with its reason, or "unfinished" when the load ended first.
    The lists have one entry per result: when it should have been sent, seconds from the start of the load,
    its latency from then on, and the server's word on queue wait, compute, and arrival to answer.
    """

    flow: Flow
    offered: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    sent_s: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    queue_wait_ms: list[float] = field(default_factory=list)
    compute_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)

    @property
    def results(self) -> int:
        """Calls that were answered."""
        return self.ends.get(RESULT, 0)

    def in_time(self, from_s: float, to_s: float) -> int:
        """Results that came within their deadline, and in this part of the load."""
        latency_s = np.asarray(self.latency_ms) / 1e3
        ended_s = np.asarray(self.sent_s) + latency_s
        return int(((latency_s <= self.flow.timeout_s) & (ended_s >= from_s) & (ended_s < to_s)).sum())


class LoadTooSlow(Exception):
    """The load process could not keep up with what it was to offer."""


def offer(
    target: str, flows: Sequence[Flow], duration_s: float, *, seed: int, linger_s: float = 0.0
) -> list[FlowResult]:
    """Runs the load in a fresh process; what is still out `linger_s` after its end is cancelled.

    A load that was late, on a machine that others use too, is run again, `ATTEMPTS` times in all. Raises
    LoadTooSlow when all of them were late, and CalledProcessError when the load process broke.
    """
    load = {
        "target": target,
        "flows": [asdict(flow) for flow in flows],
        "duration_s": duration_s,
        "seed": seed,
        "linger_s": linger_s,
    }
    for _ in range(ATTEMPTS):
        done = subprocess.run(
            [sys.executable, "-m", "bench.open_loop"],
            input=json.dumps(load),
            stdout=subprocess.PIPE,
            text=True,
            timeout=duration_s + linger_s + START_TIMEOUT_S,
            check=False,
        )
        if done.returncode != os.EX_TEMPFAIL:
            done.check_returncode()
            return [FlowResult(**{**row, "flow": Flow(**row["flow"])}) for row in json.loads(done.stdout)]
    raise LoadTooSlow(f"the load process fell behind {ATTEMPTS} times")


def capacity(target: str, seconds: float, *, refused_per_s: float = 0.0, seed: int = 0) -> float:
    """Rows per second of the heavy model, with always enough in flight for full batches.

    Beside it `refused_per_s` calls of an unknown model keep client and front end as busy as an overload does:
    on the cores of the engine, or next to them, an overload is not free for anybody.
    """
    warm_up_s = 0.5
    flows = [Flow("real_time_trading", timeout_s=10.0, in_flight=64)]
    if refused_per_s:
        flows.append(Flow("real_time_trading", 10.0, refused_per_s, clients=2, model="nobody"))
    result = offer(target, flows, warm_up_s + seconds, seed=seed)[0]
    return result.in_time(warm_up_s, warm_up_s + seconds) / seconds


class Sender:
    """The calls of one flow."""

    def __init__(self, target: str, flow: Flow, rows: Iterator[dict[str, npt.NDArray[np.float32]]]) -> None:
        self.result = FlowResult(flow)
        self.blocked = 0
        self._flow = flow
        self._rows = rows
        self._clients = [Client(target, retries=RetryPolicy(attempts=1)) for _ in range(flow.clients)]
        self._out = [0] * flow.clients
        self._turn = itertools.cycle(range(flow.clients))
        self._calls: set[asyncio.Task[Any]] = set()
        self._start_s = 0.0

    async def open(self) -> None:
        """Opens every RPC stream."""
        for client in self._clients:
            await client.predict(next(self._rows), priority=self._flow.priority, timeout_s=WARM_UP_TIMEOUT_S)

    def start(self, start_s: float, end_s: float) -> None:
        """From here on latencies count; starts the callers of a closed flow."""
        self._start_s = start_s
        for _ in range(self._flow.in_flight):
            self._keep(asyncio.create_task(self._call_until(end_s)))

    def send(self, due_s: float) -> None:
        """Sends the call that was due then."""
        self._keep(asyncio.create_task(self._call(due_s)))

    async def finish(self, linger_s: float) -> None:
        """Waits for what is out, then cancels it."""
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=linger_s)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for client in self._clients:
            await client.close()

    def _keep(self, call: asyncio.Task[Any]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call_until(self, end_s: float) -> None:
        while (now_s := time.monotonic()) < end_s:
            if not await self._call(now_s):
                await asyncio.sleep(PAUSE_S)

    async def _call(self, due_s: float) -> bool:
        result = self.result
        result.offered += 1
        end = UNFINISHED
        turn = next(self._turn)
        self.blocked += self._out[turn] >= MAX_IN_FLIGHT
        self._out[turn] += 1
        now_s = time.monotonic()
        result.lag_ms.append((now_s - due_s) * 1e3)
        try:
            prediction = await self._clients[turn].predict(
                next(self._rows),
                model=self._flow.model,
                priority=self._flow.priority,
                timeout_s=max(1e-4, due_s + self._flow.timeout_s - now_s),
            )
            end = RESULT
            result.sent_s.append(due_s - self._start_s)
            result.latency_ms.append((time.monotonic() - due_s) * 1e3)
            result.queue_wait_ms.append(prediction.timing.queue_wait_ns / 1e6)
            result.compute_ms.append(prediction.timing.compute_ns / 1e6)
            result.server_ms.append(prediction.timing.server_ns / 1e6)
        except PredictionError as error:
            end = f"{error.code.name} {error.reason}" if error.reason else error.code.name
        finally:
            self._out[turn] -= 1
            result.ends[end] = result.ends.get(end, 0) + 1
        return end == RESULT


async def generate(
    target: str, flows: Sequence[Flow], duration_s: float, seed: int, linger_s: float
) -> list[FlowResult]:
    """The load itself. Raises LoadTooSlow."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((64, 1, heavy_model.ROW)).astype(np.float32)
    rows = itertools.cycle([{heavy_model.INPUT: row} for row in inputs])
    senders = [Sender(target, flow, rows) for flow in flows]
    for sender in senders:
        await sender.open()
    # A pause of the collector would be a late send; what a run leaves behind fits in memory.
    gc.collect()
    gc.disable()

    start_s = time.monotonic() + _START_DELAY_S
    schedule = _schedule(rng, senders, start_s, duration_s)
    for sender in senders:
        sender.start(start_s, start_s + duration_s)
    await send_on_time(schedule, lambda due_s, sender: sender.send(due_s))
    await asyncio.sleep(max(0.0, start_s + duration_s - time.monotonic()))
    await asyncio.gather(*(sender.finish(linger_s) for sender in senders))
    _check_pace(senders)
    return [sender.result for sender in senders]


def _schedule(
    rng: np.random.Generator, senders: Sequence[Sender], start_s: float, duration_s: float
) -> Iterator[tuple[float, Sender]]:
    """Every send of the open flows, in order of time."""
    due: list[tuple[float, Sender]] = []
    for sender in senders:
        rate_per_s = sender.result.flow.rate_per_s
        # Given their number, the instants of a Poisson process are uniform.
        count = rng.poisson(rate_per_s * duration_s)
        due += [(start_s + at_s, sender) for at_s in rng.uniform(0, duration_s, count)]
    due.sort(key=lambda send: send[0])
    return iter(due)


def _check_pace(senders: Sequence[Sender]) -> None:
    lags_ms = [lag_ms for sender in senders for lag_ms in sender.result.lag_ms]
    late_ms = float(np.quantile(lags_ms, 0.99)) if lags_ms else 0.0
    if late_ms > MAX_LAG_MS:
        raise LoadTooSlow(
            f"the load process fell behind: one send in a hundred was {late_ms:.1f} ms late or more, "
            f"allowed are {MAX_LAG_MS:g} ms"
        )
    if blocked := sum(sender.blocked for sender in senders):
        raise LoadTooSlow(f"{blocked} calls waited for a place in the client: give their flow more clients")


def main() -> int:
    """Reads the load from stdin, prints one JSON list of flow results."""
    load = json.load(sys.stdin)
    load["flows"] = [Flow(**flow) for flow in load["flows"]]
    try:
        results = uvloop.run(generate(**load))
    except LoadTooSlow as error:
        print(f"not reported: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    json.dump([asdict(result) for result in results], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
