"""The figures of a flow, ready to be printed, drawn, or written as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.load.generator import LoadResult, Pace
from client.load.recorder import KINDS, Record, quantile_ms

PARTS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
# Of the plot by percentiles: as often for each further nine.
_CURVE = (0, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995, 99.999, 100)

Milliseconds = float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """A part of the time: calls that should have been sent in it."""

    at_s: float
    per_s: float
    failed_per_s: float
    p50_ms: Milliseconds
    p99_ms: Milliseconds
    max_ms: Milliseconds
    wait_p99_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class FlowFigures:
    """Of one flow. Each `…_ms` maps the names of `PARTS` to milliseconds; None: nothing was measured.

    `goodput_per_s` counts answers that came within the flow's timeout. `curve` has percentiles of the
    latency, `histogram` all of it: an HdrHistogram of microseconds, encoded.
    """

    name: str
    offered: str
    mode: str
    priority: int
    rows: int
    calls: int
    results: int
    per_s: float
    goodput_per_s: float
    error_ratio: float
    ends: Mapping[str, int]
    latency_ms: Mapping[str, Milliseconds]
    wait_ms: Mapping[str, Milliseconds]
    compute_ms: Mapping[str, Milliseconds]
    server_ms: Mapping[str, Milliseconds]
    curve: Sequence[tuple[float, Milliseconds]]
    moments: Sequence[Moment]
    histogram: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Of one load."""

    title: str
    counted_s: float
    interrupted: bool
    flows: Sequence[FlowFigures]
    pace: Pace


def figures(title: str, result: LoadResult, interval_s: float) -> RunFigures:
    """Of a load that has been offered."""
    flows = []
    for flow, record in zip(result.flows, result.records, strict=True):
        by_kind = {kind: {name: record.ms(kind, part) for name, part in PARTS.items()} for kind in KINDS}
        flows.append(
            FlowFigures(
                name=flow.name,
                offered=flow.offered,
                mode=flow.mode,
                priority=flow.priority,
                rows=flow.rows,
                calls=record.offered,
                results=record.results,
                per_s=result.per_s(record),
                goodput_per_s=result.goodput_per_s(record),
                error_ratio=record.error_ratio,
                ends=dict(record.ends.most_common()),
                latency_ms=by_kind["latency"],
                wait_ms=by_kind["wait"],
                compute_ms=by_kind["compute"],
                server_ms=by_kind["server"],
                curve=[(percent, record.ms("latency", percent / 100)) for percent in _CURVE],
                moments=_moments(record, interval_s, result.counted_s),
                histogram=record.histograms["latency"].encode().decode("ascii"),
            )
        )
    return RunFigures(title, result.counted_s, result.interrupted, flows, result.pace)


def _moments(record: Record, interval_s: float, counted_s: float) -> list[Moment]:
    moments = []
    for each in record.intervals:
        length_s = min(interval_s, counted_s - each.from_s)
        if length_s <= 0:
            break
        moments.append(
            Moment(
                at_s=each.from_s,
                per_s=each.results / length_s,
                failed_per_s=each.failures / length_s,
                p50_ms=quantile_ms(each.latency, 0.5),
                p99_ms=quantile_ms(each.latency, 0.99),
                max_ms=quantile_ms(each.latency, 1.0),
                wait_p99_ms=quantile_ms(each.wait, 0.99),
            )
        )
    return moments
