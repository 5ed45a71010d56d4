"""Loads of the bundled model's windows by the generator of `tickring bench`.

A Python generator on the same cores takes its share of the machine: compare with floors.
"""

from dataclasses import dataclass

import numpy as np

from client.load import generator
from client.load.arrivals import Arrivals
from client.load.flows import STREAM, Flow, Load, Server
from client.load.payloads import requests
from tickring.v1 import types_pb2

WARM_UP_S = 0.3
TIMEOUT_S = 10.0
_URGENT, _BULK = types_pb2.PRIORITY_REAL_TIME_TRADING, types_pb2.PRIORITY_BACKGROUND_TASKS
_PARTS = (0.5, 0.99, 0.999)


@dataclass(frozen=True)
class LoadResult:
    """Of one run. Quantiles are of the calls' round trips."""

    calls_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float


def run(target: str, mode: str, in_flight: int, seconds: float) -> LoadResult:
    """A closed loop of urgent calls, in a fresh process. Raises RuntimeError when a call fails."""
    flow = Flow("windows", windows(), None, in_flight, mode, _URGENT, TIMEOUT_S)
    result = _offer(target, [flow], seconds)
    p50, p99, p999 = (1e3 * (result.records[0].ms("latency", part) or float("nan")) for part in _PARTS)
    return LoadResult(result.per_s(result.records[0]), p50, p99, p999)


def urgent_p95_us(target: str, rate_per_s: float, seconds: float, bulk_in_flight: int = 0) -> float:
    """Of urgent calls at a rate, beside so many of the lowest class. Raises RuntimeError where one fails."""
    payloads = windows()
    flows = [Flow("urgent", payloads, Arrivals("poisson", rate_per_s), 0, STREAM, _URGENT, TIMEOUT_S)]
    if bulk_in_flight:
        flows.append(Flow("bulk", payloads, None, bulk_in_flight, STREAM, _BULK, TIMEOUT_S))
    return 1e3 * (_offer(target, flows, seconds).records[0].ms("latency", 0.95) or float("nan"))


def windows() -> list[bytes]:
    """Requests of one window each."""
    rows = np.random.default_rng(0).standard_normal((64, 50, 60)).astype(np.float32)
    return requests({"window": rows}, 1)


def _offer(target: str, flows: list[Flow], seconds: float) -> generator.LoadResult:
    load = Load(Server(target), flows, seconds, WARM_UP_S)
    # A gate compares with a floor of the same run: a generator that is the limit makes it fail, not pass.
    result = generator.run(load, max_lag_ms=float("inf"), max_cpu=float("inf"))
    for record in result.records:
        if record.failures:
            raise RuntimeError(f"calls failed: {dict(record.ends)}")
    return result
