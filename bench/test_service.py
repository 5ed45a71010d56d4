"""The whole service against the bare model: front end, rings, engine and a Python client on one machine.

The client is Python and shares the cores, so these bars are lower than those of a light generator in C++
(docs/measurements.md). Floor and service alternate, and the best round counts.
"""

import pytest

from bench import load
from bench.bare_model import measure
from bench.conftest import Gate
from bench.server_process import ServerProcess

ROUNDS = 3
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_throughput(gate: Gate, server: ServerProcess, mode: str) -> None:
    """64 in flight, in windows per second."""
    rounds = []
    for _ in range(ROUNDS):
        floor = measure(0.5, (16, 32)).best_windows_per_s
        rounds.append((load.run(server.target, mode, 64, 2.0).calls_per_s, floor))
    gate.check(f"throughput_{mode}", *rounds)


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_unloaded_latency(gate: Gate, server: ServerProcess, mode: str) -> None:
    """One call at a time: p50 of the round trip."""
    rounds = []
    for _ in range(ROUNDS):
        floor = measure(0.5, (1,)).p50_us[1]
        rounds.append((load.run(server.target, mode, 1, 1.0).p50_us, floor))
    gate.check(f"latency_{mode}", *rounds)


def test_unloaded_tail(gate: Gate, server: ServerProcess) -> None:
    """One unary call at a time: a wake-up that comes late now and then."""
    results = [load.run(server.target, "unary", 1, 2.0) for _ in range(ROUNDS)]
    gate.check("latency_unary_p99", *((result.p99_us, result.p50_us) for result in results))


def test_tail(gate: Gate, server: ServerProcess) -> None:
    """32 unary calls in flight: how far the tail is from the middle."""
    results = [load.run(server.target, "unary", 32, 2.0) for _ in range(ROUNDS)]
    gate.check("tail", *((result.p999_us, result.p50_us) for result in results))
