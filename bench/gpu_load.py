"""A load process for a fast server: keeps calls in flight through our client and reports raw latencies.

    python -m bench.gpu_load TARGET MODE IN_FLIGHT ROWS OUT

Prints "ready" when its connection stands, reads "<start> <seconds>" (CLOCK_MONOTONIC), and writes the
latencies of the calls that ended within that time to OUT, float32 `[n]`, microseconds. Several of these make
a load: one Python client sends some thousand calls per second.
"""

import asyncio
import gc
import sys
import time
from pathlib import Path

import numpy as np
import uvloop

from client import Client, PredictionError

WINDOW = (50, 60)


async def generate(target: str, mode: str, in_flight: int, rows: int, out: Path) -> int:
    """Calls that failed within the time."""
    windows = np.random.default_rng(0).standard_normal((rows, *WINDOW)).astype(np.float32)
    latencies: list[float] = []
    failed = 0
    async with Client(target) as client:
        predict = client.predict_unary if mode == "unary" else client.predict
        await predict({"window": windows}, priority="high", timeout_s=30.0)
        print("ready", flush=True)
        start_s, seconds = map(float, sys.stdin.readline().split())
        end_s = start_s + seconds
        gc.collect()
        gc.disable()

        async def caller() -> None:
            nonlocal failed
            while (sent_s := time.monotonic()) < end_s:
                try:
                    await predict({"window": windows}, priority="normal", timeout_s=30.0)
                except PredictionError:
                    failed += start_s <= time.monotonic() < end_s
                    await asyncio.sleep(0.001)
                    continue
                if start_s <= (now_s := time.monotonic()) < end_s:
                    latencies.append((now_s - sent_s) * 1e6)

        await asyncio.gather(*(caller() for _ in range(in_flight)))
    np.save(out, np.asarray(latencies, np.float32))
    return failed


if __name__ == "__main__":
    target, mode, in_flight, rows, out = sys.argv[1:]
    print(uvloop.run(generate(target, mode, int(in_flight), int(rows), Path(out))), flush=True)
