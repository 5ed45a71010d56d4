"""The whole service against the bare model: front end, rings, engine and a Python client on one machine.

The client is Python and shares the cores, so these bars are lower than those of a light generator in C++
(docs/measurements.md). Floor and service alternate, and the best round counts.
"""

import pytest

from bench import load
from bench.bare_model import measure
from bench.conftest import Gate
from bench.server_process import ServerProcess
from server.settings import Settings

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


def test_isolation(gate: Gate, server: ServerProcess) -> None:
    """Urgent calls while the lowest class has 64 in flight: p95, beside alone and a quantum."""
    quantum_us = 1e3 * Settings().scheduler.bulk_quantum_ms
    rounds = []
    for _ in range(ROUNDS):
        alone_us = load.urgent_p95_us(server.target, 100, 2.0)
        rounds.append((load.urgent_p95_us(server.target, 100, 2.0, bulk_in_flight=64), alone_us + quantum_us))
    gate.check("isolation", *rounds)


def test_tail(gate: Gate, server: ServerProcess) -> None:
    """32 unary calls in flight: how far the tail is from the middle."""
    results = [load.run(server.target, "unary", 32, 2.0) for _ in range(ROUNDS)]
    gate.check("tail", *((result.p999_us, result.p50_us) for result in results))
