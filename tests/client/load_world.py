"""Figures and servers that tests of scenarios make up."""

from collections.abc import Callable, Sequence

from client.load.context import Context
from client.load.figures import PARTS, FlowFigures, Moment, RunFigures
from client.load.flows import Flow
from client.load.generator import Pace
from client.load.report import Report

CONTEXT = Context("2026-01-02T03:04:05+0000", "a CPU", 2, 4.0, "Linux", "3.11", {"grpcio": "1"}, "abc")


def flow_figures(
    *,
    p50: float | None = 5.0,
    p99: float | None = 20.0,
    per_s: float = 100.0,
    errors: float = 0.0,
    name: str = "load",
) -> FlowFigures:
    """Of ten seconds; the longest took twice as long as p99."""
    latency = dict.fromkeys(PARTS, p50) | {"p99": p99, "p999": p99, "max": None if p99 is None else 2 * p99}
    calls = round(per_s * 10)
    return FlowFigures(
        name=name,
        offered="100/s poisson",
        mode="unary",
        priority=1,
        rows=1,
        calls=calls,
        results=round(calls * (1 - errors)),
        per_s=per_s,
        goodput_per_s=per_s,
        error_ratio=errors,
        ends={"RESULT": round(calls * (1 - errors)), "UNAVAILABLE": round(calls * errors)},
        latency_ms=latency,
        wait_ms=latency,
        compute_ms=latency,
        server_ms=latency,
        curve=[(0, p50), (50, p50), (99, p99), (100, p99)],
        moments=[Moment(float(at), per_s, errors * per_s, p50, p99, p99, p50) for at in range(10)],
        histogram="",
    )


def run_figures(*flows: FlowFigures, title: str = "run", interrupted: bool = False) -> RunFigures:
    """Of a generator that kept up."""
    return RunFigures(title, 10.0, interrupted, flows, Pace(1, 0.1, 0.5, 1.0, [0.2]))


def report(scenario: str = "load") -> Report:
    """An empty one."""
    return Report(scenario, "127.0.0.1:8001", CONTEXT, {"rate": "100"})


class MadeUpBench:
    """Answers as `behave` says, and keeps what it was asked to offer."""

    def __init__(self, behave: Callable[[Sequence[Flow]], RunFigures]) -> None:
        self.asked: list[Sequence[Flow]] = []
        self._behave = behave

    def run(self, title: str, flows: Sequence[Flow], seconds: float) -> RunFigures:
        assert seconds > 0
        self.asked.append(flows)
        return self._behave(flows)
