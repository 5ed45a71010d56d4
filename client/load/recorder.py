"""What became of the calls of a flow: ends, latencies, and how they went on over time.

Latencies are kept in HDR histograms of microseconds with three significant digits, so that an hour needs no
more memory than a minute and what several processes saw can be added up.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

HIGHEST_US = 3_600_000_000
DIGITS = 3
RESULT = "RESULT"
UNFINISHED = "UNFINISHED"

# latency: from the instant at which a call should have been sent to its answer.
# wait, compute, server: the server's own words: in the queue, in a batch, from arrival to answer.
# lag: from the instant at which a call of an open loop should have been sent to its sending.
KINDS = ("latency", "wait", "compute", "server", "lag")


def histogram() -> HdrHistogram:
    """An empty one."""
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def record_us(into: HdrHistogram, seconds: float) -> None:
    """Less than a microsecond is one, more than an hour is one."""
    into.record_value(min(HIGHEST_US, max(1, round(seconds * 1e6))))


def quantile_ms(of: HdrHistogram, part: float) -> float | None:
    """None where nothing was recorded."""
    if not of.get_total_count():
        return None
    return float(of.get_value_at_percentile(100 * part)) / 1e3


@dataclass
class Interval:
    """A part of the time: calls that should have been sent in it, seconds from the start.

    `in_time` alone counts by when answers came: those that came in it, and within their timeout.
    """

    from_s: float
    results: int = 0
    failures: int = 0
    in_time: int = 0
    latency: HdrHistogram = field(default_factory=histogram)
    wait: HdrHistogram = field(default_factory=histogram)


@dataclass
class Record:
    """Of one flow. `ends` counts what calls ended with: RESULT, UNFINISHED, or a status and its reason."""

    offered: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, HdrHistogram] = field(default_factory=lambda: {kind: histogram() for kind in KINDS})
    intervals: list[Interval] = field(default_factory=list)

    @property
    def results(self) -> int:
        """Calls that were answered."""
        return self.ends[RESULT]

    @property
    def in_time(self) -> int:
        """Answers that came in the time that counts and within their timeout, whenever they were due."""
        return sum(each.in_time for each in self.intervals)

    @property
    def failures(self) -> int:
        """Calls that ended in any other way."""
        return sum(self.ends.values()) - self.results

    @property
    def error_ratio(self) -> float:
        """Of the calls that have ended; 0 where none has."""
        return self.failures / max(1, sum(self.ends.values()))

    def ms(self, kind: str, part: float) -> float | None:
        """A quantile; None where nothing was recorded."""
        return quantile_ms(self.histograms[kind], part)

    def add(self, other: "Record") -> None:
        """What another process saw of the same flow in the same time."""
        self.offered += other.offered
        self.ends.update(other.ends)
        for kind, mine in self.histograms.items():
            mine.add(other.histograms[kind])
        for mine_, theirs in zip(self.intervals, other.intervals, strict=True):
            mine_.results += theirs.results
            mine_.failures += theirs.failures
            mine_.in_time += theirs.in_time
            mine_.latency.add(theirs.latency)
            mine_.wait.add(theirs.wait)


class Recorder:
    """Writes a `Record`; instants are seconds from the start of what counts.

    `timeout_s` is that of every call, from the instant at which it should be sent; None: no answer is late.
    """

    def __init__(self, duration_s: float, interval_s: float, timeout_s: float | None = None) -> None:
        self.record = Record(intervals=[Interval(at_s) for at_s in _starts(duration_s, interval_s)])
        self._duration_s = duration_s
        self._interval_s = interval_s
        self._timeout_s = math.inf if timeout_s is None else timeout_s

    def counts(self, due_s: float) -> bool:
        """Whether a call that should be sent then is of the time that counts."""
        return 0 <= due_s < self._duration_s

    def sent(self, due_s: float, lag_s: float | None) -> None:
        """A call was sent; `lag_s`: how late, None in a closed loop."""
        if self.counts(due_s):
            self.record.offered += 1
            if lag_s is not None:
                record_us(self.record.histograms["lag"], lag_s)

    def result(self, due_s: float, ended_s: float) -> None:
        """It was answered."""
        if 0 <= ended_s < self._duration_s and ended_s - due_s <= self._timeout_s:
            self._interval(ended_s).in_time += 1
        if not self.counts(due_s):
            return
        record = self.record
        record.ends[RESULT] += 1
        record_us(record.histograms["latency"], ended_s - due_s)
        interval = self._interval(due_s)
        interval.results += 1
        record_us(interval.latency, ended_s - due_s)

    def told(self, due_s: float, wait_s: float, compute_s: float, server_s: float) -> None:
        """What the server says of it."""
        if self.counts(due_s):
            histograms = self.record.histograms
            record_us(histograms["wait"], wait_s)
            record_us(histograms["compute"], compute_s)
            record_us(histograms["server"], server_s)
            record_us(self._interval(due_s).wait, wait_s)

    def failure(self, due_s: float, end: str) -> None:
        """It ended otherwise."""
        if self.counts(due_s):
            self.record.ends[end] += 1
            self._interval(due_s).failures += 1

    def _interval(self, at_s: float) -> Interval:
        return self.record.intervals[int(at_s / self._interval_s)]


def to_json(record: Record) -> dict[str, Any]:
    """Histograms in their own compressed form, which other tools read, too."""
    return {
        "offered": record.offered,
        "ends": dict(record.ends),
        "histograms": {kind: _encoded(each) for kind, each in record.histograms.items()},
        "intervals": [
            [
                each.from_s,
                each.results,
                each.failures,
                each.in_time,
                *map(_encoded, (each.latency, each.wait)),
            ]
            for each in record.intervals
        ],
    }


def from_json(told: dict[str, Any]) -> Record:
    """What `to_json` was given."""
    intervals = [
        Interval(from_s, results, failures, in_time, _decoded(latency), _decoded(wait))
        for from_s, results, failures, in_time, latency, wait in told["intervals"]
    ]
    histograms = {kind: _decoded(text) for kind, text in told["histograms"].items()}
    return Record(told["offered"], Counter(told["ends"]), histograms, intervals)


def add_up(records: Sequence[Record]) -> Record:
    """What all processes saw of one flow."""
    total, *others = records
    for other in others:
        total.add(other)
    return total


def _starts(duration_s: float, interval_s: float) -> Iterator[float]:
    count = max(1, -int(-duration_s // interval_s))
    for number in range(count):
        yield number * interval_s


def _encoded(of: HdrHistogram) -> str:
    return str(of.encode().decode("ascii")) if of.get_total_count() else ""


def _decoded(text: str) -> HdrHistogram:
    return HdrHistogram.decode(text) if text else histogram()
