"""A load process that calls at a steady rate until its stdin ends, and then tells of every call.

    python -m bench.steady TARGET --rate 100 [--stream]

An open loop: calls are sent at the instants of a Poisson process, and latency counts from the instant at
which a call should have been sent. Prints one JSON object: of each call that was answered the instant,
seconds of CLOCK_MONOTONIC, and the latency in milliseconds; and how often each failure was met.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import uvloop

from client import Client, PredictionError, RetryPolicy

# Nothing is tried again: a call that fails is to be seen.
TIMEOUT_S = 10.0


@dataclass
class SteadyResult:
    """What became of the calls."""

    sent_s: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def between(self, from_s: float, to_s: float) -> list[float]:
        """Latencies of calls that were sent in this span."""
        return [ms for at, ms in zip(self.sent_s, self.latency_ms, strict=True) if from_s <= at < to_s]


class Steady:
    """The load, in a process of its own from `start` to `stop`."""

    def __init__(self, target: str, rate_per_s: float, *, stream: bool) -> None:
        self._command = [sys.executable, "-m", "bench.steady", target, "--rate", str(rate_per_s)]
        self._command += ["--stream"] if stream else []

    def start(self) -> None:
        """It calls from now on."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> SteadyResult:
        """Waits for what is under way. Raises RuntimeError where the load process broke."""
        printed, _ = self._process.communicate(timeout=TIMEOUT_S * 3)
        if self._process.returncode:
            raise RuntimeError(f"the load process ended with {self._process.returncode}")
        return SteadyResult(**json.loads(printed))


async def _call(target: str, rate_per_s: float, stream: bool) -> SteadyResult:
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    result, failures = SteadyResult(), Counter[str]()
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    calls: set[asyncio.Task[None]] = set()
    async with Client(target, retries=RetryPolicy(attempts=1)) as client:
        predict = client.predict if stream else client.predict_unary

        async def call(due_s: float) -> None:
            try:
                await predict({"window": window}, priority="high", timeout_s=TIMEOUT_S)
            except PredictionError as error:
                failures[f"{error.code.name}: {error.message}"] += 1
                return
            result.sent_s.append(due_s)
            result.latency_ms.append((time.monotonic() - due_s) * 1e3)

        due_s = time.monotonic()
        while not ended.done():
            due_s += random.expovariate(rate_per_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(call(due_s))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)
    result.failures = dict(failures)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--stream", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(asdict(uvloop.run(_call(arguments.target, arguments.rate, arguments.stream)))))
