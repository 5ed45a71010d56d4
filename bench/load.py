"""A load of the bundled model's windows by the generator of `tickring bench`: a closed loop.

A Python generator on the same cores takes its share of the machine: compare with floors.
"""

from dataclasses import dataclass

import numpy as np

from client.load import generator
from client.load.flows import Flow, Load, Server
from client.load.payloads import requests
from tickring.v1 import types_pb2

WARM_UP_S = 0.3
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class LoadResult:
    """Of one run. Quantiles are of the calls' round trips."""

    calls_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float


def run(target: str, mode: str, in_flight: int, seconds: float) -> LoadResult:
    """Runs the load in a fresh process. Raises RuntimeError when a call fails."""
    windows = np.random.default_rng(0).standard_normal((64, 50, 60)).astype(np.float32)
    flow = Flow(
        name="windows",
        payloads=requests({"window": windows}, 1),
        in_flight=in_flight,
        mode=mode,
        priority=types_pb2.PRIORITY_REAL_TIME_TRADING,
        timeout_s=TIMEOUT_S,
    )
    load = Load(Server(target), [flow], seconds, WARM_UP_S)
    # A gate compares with a floor of the same run: a generator that is the limit makes it fail, not pass.
    result = generator.run(load, max_cpu=float("inf"))
    (record,) = result.records
    if record.failures:
        raise RuntimeError(f"calls failed: {dict(record.ends)}")
    p50, p99, p999 = (1e3 * (record.ms("latency", part) or float("nan")) for part in (0.5, 0.99, 0.999))
    return LoadResult(result.per_s(record), p50, p99, p999)
