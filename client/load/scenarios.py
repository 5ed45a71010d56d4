"""The questions of `tickring bench`. Each offers loads and answers with a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from client.load.arrivals import Arrivals
from client.load.errors import TooSlow
from client.load.figures import RunFigures
from client.load.flows import Flow
from client.load.objectives import Verdict, judge
from client.load.report import Report, Table, main_flow, ms

# A level of a stress test counts as broken from here on, whatever was promised.
BROKEN_ERRORS = 0.05
# Of what a level offers, so much must be answered in its time.
KEPT_UP = 0.9
# Part of the rate by which the knee is found.
CLOSE_ENOUGH = 0.1
MEMORY_GROWTH = 0.02


class Bench(Protocol):
    """Offers loads one after the other."""

    def run(self, title: str, flows: Sequence[Flow], seconds: float) -> RunFigures:
        """Raises `LoadFailed`."""
        ...


@dataclass(frozen=True, slots=True)
class Level:
    """One step of a stress test."""

    rate_per_s: float
    run: RunFigures
    broken: str  # why it is too much; empty where it is not


def hold(
    bench: Bench, report: Report, flows: Sequence[Flow], seconds: float, slo: Mapping[str, float]
) -> None:
    """`latency`, `load`, `soak`: one load; promises are about its first flow."""
    run = bench.run(report.scenario, flows, seconds)
    report.runs.append(run)
    report.verdicts += judge(slo, main_flow(run))


def stress(
    bench: Bench,
    report: Report,
    flow: Flow,
    seconds: float,
    slo: Mapping[str, float],
    *,
    factor: float,
    highest_per_s: float,
) -> None:
    """Raises the rate until a promise or the server breaks, then looks for the knee between the two rates.

    Where the generator is what breaks first, the levels before that are the answer.

    Raises:
        TooSlow: it could not even offer the first one.
    """
    assert flow.arrivals is not None
    levels: list[Level] = []

    def level(rate_per_s: float) -> Level:
        assert flow.arrivals is not None
        arrivals = flow.arrivals.scaled(rate_per_s / flow.arrivals.rate_per_s)
        run = bench.run(f"{rate_per_s:.0f}/s", [replace(flow, arrivals=arrivals)], seconds)
        levels.append(Level(rate_per_s, run, _broken(run, arrivals, slo)))
        return levels[-1]

    rate_per_s, good_per_s, bad_per_s = flow.arrivals.rate_per_s, 0.0, 0.0
    try:
        while rate_per_s <= highest_per_s:
            if level(rate_per_s).broken:
                bad_per_s = rate_per_s
                break
            good_per_s = rate_per_s
            rate_per_s *= factor
        while good_per_s and bad_per_s > good_per_s * (1 + CLOSE_ENOUGH):
            rate_per_s = (good_per_s * bad_per_s) ** 0.5
            if level(rate_per_s).broken:
                bad_per_s = rate_per_s
            else:
                good_per_s = rate_per_s
    except TooSlow as error:
        if not levels:
            raise
        report.notes.append(f"{rate_per_s:,.0f}/s could not be offered, the search ends there: {error}")
    _tell_of_stress(report, levels, good_per_s, bad_per_s)


def mixed(
    bench: Bench,
    report: Report,
    urgent: Flow,
    bulk: Flow,
    seconds: float,
    slo: Mapping[str, float],
) -> None:
    """Urgent work alone, then beside bulk."""
    alone = bench.run("alone", [urgent], seconds)
    beside = bench.run("beside bulk", [urgent, bulk], seconds)
    report.runs += [alone, beside]
    first, second = main_flow(alone), main_flow(beside)
    report.tables.append(
        Table(
            "What bulk costs urgent work, ms",
            ["urgent", "latency p50", "p99", "wait p50", "p99"],
            [
                [
                    name,
                    *(ms(flow.latency_ms[part]) for part in ("p50", "p99")),
                    *(ms(flow.wait_ms[part]) for part in ("p50", "p99")),
                ]
                for name, flow in (("alone", first), ("beside bulk", second))
            ],
        )
    )
    report.verdicts += judge(slo, second)


def validate(
    bench: Bench,
    report: Report,
    flow: Flow,
    seconds: float,
    slo: Mapping[str, float],
    *,
    target_per_s: float,
    peak_per_s: float,
) -> None:
    """The targets of a trading platform: latency and errors at the rate of every day, and the peak."""
    everyday = replace(flow, arrivals=Arrivals("poisson", target_per_s))
    peak = replace(flow, arrivals=Arrivals("poisson", peak_per_s))
    at_target = bench.run(f"{target_per_s:g}/s", [everyday], seconds)
    at_peak = bench.run(f"{peak_per_s:g}/s", [peak], max(5.0, seconds / 4))
    report.runs += [at_target, at_peak]
    report.verdicts += judge({**slo, "min_rps": KEPT_UP * target_per_s}, main_flow(at_target))
    peak_flow = main_flow(at_peak)
    report.verdicts.append(
        Verdict(
            f"peak: answers of {peak_per_s:g}/s",
            peak_flow.per_s,
            KEPT_UP * peak_per_s,
            at_most=False,
            unit="/s",
        )
    )
    if "max_error_ratio" in slo:
        report.verdicts.append(
            Verdict("peak: max_error_ratio", peak_flow.error_ratio, slo["max_error_ratio"], unit="")
        )


def memory_verdicts(before: Mapping[str, float], after: Mapping[str, float]) -> list[Verdict]:
    """Resident bytes by process, early and late in a soak: how far they grew."""
    return [
        Verdict(f"memory of {name} beside before", after[name] / before[name], 1 + MEMORY_GROWTH, unit="x")
        for name in sorted(before)
        if name in after and before[name]
    ]


def _broken(run: RunFigures, arrivals: Arrivals, slo: Mapping[str, float]) -> str:
    flow = main_flow(run)
    missed = [verdict for verdict in judge(slo, flow) if not verdict.holds]
    if missed:
        return f"{missed[0].name.rpartition(': ')[2]} {missed[0].text}"
    if flow.error_ratio > BROKEN_ERRORS:
        return f"{flow.error_ratio:.1%} errors"
    if flow.per_s < KEPT_UP * flow.calls / max(run.counted_s, 1e-9):
        return f"{flow.per_s:.0f}/s answered of {arrivals.rate_per_s:.0f}/s"
    return ""


def _tell_of_stress(report: Report, levels: Sequence[Level], good_per_s: float, bad_per_s: float) -> None:
    levels = sorted(levels, key=lambda each: each.rate_per_s)
    report.runs += [each.run for each in levels]
    rows = []
    for each in levels:
        flow = main_flow(each.run)
        latency = [ms(flow.latency_ms[part]) for part in ("p50", "p99", "max")]
        answered = f"{flow.per_s:,.1f}"
        rows.append(
            [f"{each.rate_per_s:,.0f}", answered, f"{flow.error_ratio:.2%}", *latency, each.broken or "holds"]
        )
    report.tables.append(
        Table("Levels", ["offered/s", "answered/s", "errors", "p50, ms", "p99, ms", "max, ms", ""], rows)
    )
    if not bad_per_s:
        report.notes.append(f"nothing broke up to {good_per_s:,.0f}/s")
    elif not good_per_s:
        report.notes.append(f"the first level, {bad_per_s:,.0f}/s, is too much: start lower with --rate")
    else:
        report.notes.append(f"the knee is between {good_per_s:,.0f}/s and {bad_per_s:,.0f}/s")
