"""Two sides under the same load in turn, and whether they differ: ratios with their confidence intervals.

The machine is not the same from minute to minute. So a round measures both sides, one after the other and in
changing order, and what counts is the ratio within a round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.load.figures import FlowFigures, RunFigures
from client.load.report import Report, Table, main_flow

# Quantiles 0.975 of Student's t by degrees of freedom, from 1 on; beyond the table that of the normal.
_T = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
_T_NORMAL = 1.96

FIGURES: dict[str, Callable[[FlowFigures], float | None]] = {
    "answers per second": lambda flow: flow.per_s,
    "latency p50": lambda flow: flow.latency_ms["p50"],
    "latency p90": lambda flow: flow.latency_ms["p90"],
    "latency p99": lambda flow: flow.latency_ms["p99"],
    "latency p99.9": lambda flow: flow.latency_ms["p999"],
    "wait p99": lambda flow: flow.wait_ms["p99"],
}

# Measures one side once.
Side = Callable[[str], RunFigures]


@dataclass(frozen=True, slots=True)
class Ratio:
    """B beside A: the geometric mean over the rounds, and its interval of 95 %; a single round has none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def differs(self) -> bool:
        """Whether 1 is outside of the interval."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def compare(
    report: Report, first: tuple[str, Side], second: tuple[str, Side], rounds: int
) -> dict[str, Ratio]:
    """Measures both in turn, `rounds` times."""
    names = (first[0], second[0])
    pairs: list[tuple[FlowFigures, FlowFigures]] = []
    for number in range(rounds):
        sides = [first, second] if number % 2 == 0 else [second, first]
        runs = {name: side(f"{name} {number + 1}") for name, side in sides}
        report.runs += [runs[name] for name in names]
        pairs.append((main_flow(runs[names[0]]), main_flow(runs[names[1]])))
    ratios, rows = {}, []
    for figure, of in FIGURES.items():
        values = [(of(one), of(other)) for one, other in pairs]
        known = [(one, other) for one, other in values if one and other]
        if not known:
            continue
        ratio = ratios[figure] = ratio_of(known)
        spread = "-" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        means = [math.exp(sum(math.log(pair[side]) for pair in known) / len(known)) for side in (0, 1)]
        verdict = "differs" if ratio.differs else "no difference seen"
        rows.append([figure, *(f"{mean:,.4g}" for mean in means), f"{ratio.mean:.3f}", spread, verdict])
    report.tables.append(
        Table(
            f"{names[1]} beside {names[0]}, {rounds} rounds in turn; latencies in ms",
            ["figure", *names, "ratio", "95 %", ""],
            rows,
        )
    )
    return ratios


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Of positive figures (A, B), a pair for each round."""
    logs = [math.log(other / one) for one, other in pairs]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), None, None)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in logs) / (len(logs) - 1))
    freedom = len(logs) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _T_NORMAL
    half = quantile * deviation / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
