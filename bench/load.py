"""A load process in Python: keeps a number of calls in flight through our client, then reports.

    python -m bench.load TARGET --mode unary|stream --in-flight 64 --calls 8000

Prints one JSON object: calls per second and latency quantiles from raw samples, microseconds. A Python
generator on the same cores takes its share of the machine: compare with floors, not with other tools.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from client import Client


@dataclass(frozen=True)
class LoadResult:
    """Of one run. Quantiles are of the calls' round trips."""

    calls_per_s: float
    p50_us: float
    p999_us: float


def run(target: str, mode: str, in_flight: int, calls: int) -> LoadResult:
    """Runs the load in a fresh process."""
    command = [sys.executable, "-m", "bench.load", target, "--mode", mode]
    command += ["--in-flight", str(in_flight), "--calls", str(calls)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return LoadResult(**json.loads(printed.stdout))


async def _generate(target: str, mode: str, in_flight: int, calls: int) -> LoadResult:
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    times: list[float] = []
    left = calls

    async with Client(target) as client:
        predict = client.predict_unary if mode == "unary" else client.predict

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                started = time.perf_counter()
                await predict({"window": window}, priority="high", timeout_s=10.0)
                times.append(time.perf_counter() - started)

        await predict({"window": window}, priority="high", timeout_s=10.0)
        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        took = time.perf_counter() - started
    p50, p999 = np.quantile(times, [0.5, 0.999]) * 1e6
    return LoadResult(len(times) / took, float(p50), float(p999))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--mode", choices=["unary", "stream"], default="unary")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--calls", type=int, default=8000)
    arguments = parser.parse_args()
    result = asyncio.run(_generate(arguments.target, arguments.mode, arguments.in_flight, arguments.calls))
    print(json.dumps(asdict(result)))
