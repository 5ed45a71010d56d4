"""The whole service against the bare model: front end, rings, engine and a Python client on one machine.

The client is Python and shares the cores, so these bars are lower than those of a light generator in
C++ (README, "How fast"). Each gate takes the best of a few rounds, floor and service alternating: a
slower build is slower in all of them, a noisy neighbour only in some.
"""

import pytest

from bench import load
from bench.bare_model import measure
from bench.conftest import Gate, Verdict
from bench.server_process import ServerProcess

ROUNDS = 3
THROUGHPUT_BARS = {"unary": 0.25, "stream": 0.35}
# Microseconds that the service adds to a lone call, as a multiple of the model's own batch-1 time.
LATENCY_BARS = {"unary": 3.5, "stream": 2.8}
# p99.9 over p50 of the same run.
TAIL_BAR = 6.0


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_throughput(gate: Gate, server: ServerProcess, mode: str) -> None:
    """64 in flight, in windows per second."""
    best = None
    for _ in range(ROUNDS):
        floor = measure(0.5, (16, 32)).best_windows_per_s
        served = load.run(server.target, mode, 64, 2.0).calls_per_s
        verdict = Verdict(
            f"{mode}, 64 in flight", served, floor, "windows/s", THROUGHPUT_BARS[mode], higher_is_better=True
        )
        best = verdict if best is None or verdict.ratio > best.ratio else best
    assert best is not None
    gate.check(best)


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_unloaded_latency(gate: Gate, server: ServerProcess, mode: str) -> None:
    """One call at a time: p50 of the round trip."""
    best = None
    for _ in range(ROUNDS):
        floor = measure(0.5, (1,)).p50_us[1]
        served = load.run(server.target, mode, 1, 1.0).p50_us
        verdict = Verdict(f"{mode}, 1 in flight, p50", served, floor, "us", LATENCY_BARS[mode], False)
        best = verdict if best is None or verdict.ratio < best.ratio else best
    assert best is not None
    gate.check(best)


def test_tail(gate: Gate, server: ServerProcess) -> None:
    """32 unary calls in flight: how far the tail is from the middle."""
    best = None
    for _ in range(ROUNDS):
        result = load.run(server.target, "unary", 32, 2.0)
        verdict = Verdict(
            "unary, 32 in flight, p99.9 over p50", result.p999_us, result.p50_us, "us", TAIL_BAR, False
        )
        best = verdict if best is None or verdict.ratio < best.ratio else best
    assert best is not None
    gate.check(best)
