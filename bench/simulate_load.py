"""The load process of `bench.simulate check`: open loop, one RPC stream, and a record of every answer.

    echo '{"target": …, "sends": [[seconds, priority], …]}' | python -m bench.simulate_load

Without sends it keeps IN_FLIGHT calls out for `seconds`. Prints one JSON list of `Answer`.
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np
import uvloop

from client import Client, RetryPolicy
from client.load.pacing import send_on_time

IN_FLIGHT = 32
# Of `simulate_model`, which would load torch.
INPUT, ROW = "x", 4
TIMEOUT_S = 30.0
WARM_UP_CALLS = 200
_START_DELAY_S = 0.1


class Answer(NamedTuple):
    """One result. `sent_ns` and `answered_ns` are CLOCK_MONOTONIC; the rest is the server's own word."""

    priority: str
    sent_ns: int
    answered_ns: int
    queue_wait_ns: int
    compute_ns: int
    batch_size: int
    bucket: int


Call = Callable[[Client, str], Coroutine[Any, Any, None]]


def send(target: str, sends: Sequence[tuple[float, str]]) -> list[Answer]:
    """Sends at these instants, seconds from the start, ascending; whatever the server does."""
    return _run({"target": target, "sends": list(sends), "seconds": 0.0})


def saturate(target: str, seconds: float) -> list[Answer]:
    """Keeps the server busy without a pause."""
    return _run({"target": target, "sends": [], "seconds": seconds})


def _run(load: dict[str, object]) -> list[Answer]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.simulate_load"],
        input=json.dumps(load), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [Answer(*row) for row in json.loads(done.stdout)]


async def _generate(target: str, sends: list[tuple[float, str]], seconds: float) -> list[Answer]:
    answers: list[Answer] = []
    row = {INPUT: np.random.default_rng(0).standard_normal((1, ROW)).astype(np.float32)}

    async def call(client: Client, priority: str) -> None:
        sent_ns = time.monotonic_ns()
        timing = (await client.predict(row, priority=priority, timeout_s=TIMEOUT_S)).timing
        answers.append(
            Answer(
                priority, sent_ns, time.monotonic_ns(), timing.queue_wait_ns,
                timing.compute_ns, timing.batch_size, timing.batch_bucket,
            )
        )  # fmt: skip

    async def caller(client: Client, end_s: float) -> None:
        while time.monotonic() < end_s:
            await call(client, "high")

    async with Client(target, retries=RetryPolicy(attempts=1)) as client:
        for _ in range(WARM_UP_CALLS):
            await call(client, "high")
        answers.clear()
        gc.collect()
        gc.disable()  # a pause of the collector would hold sends back
        if sends:
            await _send_all(client, call, sends)
        else:
            await asyncio.gather(*(caller(client, time.monotonic() + seconds) for _ in range(IN_FLIGHT)))
    return answers


async def _send_all(client: Client, call: Call, sends: list[tuple[float, str]]) -> None:
    """Returns when the last answer is there."""
    start_s = time.monotonic() + _START_DELAY_S
    upcoming = iter([(start_s + at_s, priority) for at_s, priority in sends])
    calls: list[asyncio.Task[None]] = []

    def send(_: float, priority: str) -> None:
        calls.append(asyncio.create_task(call(client, priority)))

    await send_on_time(upcoming, send)
    await asyncio.gather(*calls)


def main() -> None:
    """Reads the load from stdin."""
    load = json.load(sys.stdin)
    json.dump(uvloop.run(_generate(**load)), sys.stdout)


if __name__ == "__main__":
    main()
