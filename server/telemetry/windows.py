"""Keeps readings for a while, and says what happened between two of them.

One reading a second for the last minutes, coarser ones for hours: what happened in the last N seconds is the
difference of the newest and the one that is that much older, or the oldest where the service is younger.
"""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

from server.telemetry.totals import DURATION_BOUNDS_S, Flow, Histogram, Totals

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Tier:
    """Readings that are `every_s` apart, the newest `kept` of them."""

    every_s: float
    kept: int


# Two minutes, ten minutes, two hours. With one model these are some megabytes: what did not change from one
# reading to the next is kept once.
TIERS = (Tier(1, 121), Tier(10, 61), Tier(60, 121))
# Of the finest step: so much earlier than due a reading may be, because the one before it was late.
EARLY_PART = 0.5


@dataclass(frozen=True)
class Span:
    """What was counted between two readings. Values of this moment are those of `last`."""

    first: Totals
    last: Totals

    @cached_property
    def seconds(self) -> float:
        """How long it is, more than 0."""
        return self.last.at_s - self.first.at_s

    @cached_property
    def requests(self) -> Mapping[tuple[str, str, str], int]:
        """Ended, by model, class and gRPC code."""
        return _counted(self.last.requests, self.first.requests)

    @cached_property
    def shed(self) -> Mapping[tuple[str, str, str], int]:
        """Refused at the door, by model, class and reason."""
        return _counted(self.last.shed, self.first.shed)

    @cached_property
    def request_s(self) -> Mapping[Flow, Histogram]:
        """See `Totals`."""
        return _measured(self.last.request_s, self.first.request_s)

    @cached_property
    def queue_wait_s(self) -> Mapping[Flow, Histogram]:
        """See `Totals`."""
        return _measured(self.last.queue_wait_s, self.first.queue_wait_s)

    @cached_property
    def compute_s(self) -> Mapping[tuple[str, int], Histogram]:
        """See `Totals`."""
        return _measured(self.last.compute_s, self.first.compute_s)

    @cached_property
    def batch_size(self) -> Mapping[str, Histogram]:
        """See `Totals`."""
        return _measured(self.last.batch_size, self.first.batch_size)

    @cached_property
    def restarts(self) -> Mapping[str, int]:
        """By process, of those that were started again."""
        return _counted(self.last.restarts, self.first.restarts)

    @property
    def expired(self) -> int:
        """Items that passed their deadline in the queue."""
        return self.last.expired - self.first.expired

    def ended(
        self, *, model: str | None = None, priority: str | None = None, codes: Sequence[str] | None = None
    ) -> int:
        """Requests that ended, of one model, class and some codes; None: of all."""
        return sum(
            count
            for (its_model, its_class, code), count in self.requests.items()
            if _same(model, its_model) and _same(priority, its_class) and (codes is None or code in codes)
        )

    def refused(
        self, *, model: str | None = None, priority: str | None = None, reason: str | None = None
    ) -> int:
        """Requests that were refused at the door."""
        return sum(
            count
            for (its_model, its_class, why), count in self.shed.items()
            if _same(model, its_model) and _same(priority, its_class) and _same(reason, why)
        )

    def latency_s(self, *, model: str | None = None, priority: str | None = None) -> Histogram:
        """From arrival to answer, all flows that fit together."""
        return _together(self.request_s, model, priority)

    def wait_s(self, *, model: str | None = None, priority: str | None = None) -> Histogram:
        """From admission to dispatch, all flows that fit together."""
        return _together(self.queue_wait_s, model, priority)

    def batches_s(self, *, model: str | None = None) -> Histogram:
        """How long batches took, of all buckets."""
        fitting = [h for (its_model, _), h in self.compute_s.items() if _same(model, its_model)]
        return sum_of(fitting, DURATION_BOUNDS_S)

    def depth(self, *, model: str | None = None, priority: str | None = None) -> int:
        """Items that wait, at its end."""
        return sum(
            items
            for (its_model, its_class), items in self.last.depth.items()
            if _same(model, its_model) and _same(priority, its_class)
        )


class Windows:
    """The readings of a service, in bounded memory. Belongs to one thread."""

    def __init__(self, tiers: Sequence[Tier] = TIERS) -> None:
        """`tiers`: the finest first."""
        self._tiers = [(tier, deque[Totals](maxlen=tier.kept)) for tier in tiers]
        self._early_s = tiers[0].every_s * EARLY_PART
        self.newest: Totals | None = None

    def add(self, reading: Totals) -> None:
        """Keeps it where it is due. One that is no newer than the newest is dropped."""
        newest = self.newest
        if newest is not None:
            if reading.at_s <= newest.at_s:
                return
            reading = _sharing(reading, newest)
        for tier, kept in self._tiers:
            if not kept or reading.at_s - kept[-1].at_s >= tier.every_s - self._early_s:
                kept.append(reading)
        self.newest = reading

    def over(self, seconds: float) -> Span | None:
        """The last so many seconds, or as many as are known; None before the second reading."""
        newest = self.newest
        if newest is None:
            return None
        since_s = newest.at_s - seconds + self._early_s
        older = [reading for _, kept in self._tiers for reading in kept if reading is not newest]
        if not older:
            return None
        early = [reading for reading in older if reading.at_s <= since_s]
        by_time = max(early, key=_at) if early else min(older, key=_at)
        return Span(by_time, newest)

    def steps(self) -> list[Span]:
        """The time that the finest readings reach back, one span from each to the next, oldest first."""
        finest = list(self._tiers[0][1])
        return [Span(first, last) for first, last in pairwise(finest)]


def sum_of(histograms: Sequence[Histogram], bounds: tuple[float, ...]) -> Histogram:
    """All together; of the same bounds, which an empty sum has as well."""
    total = Histogram.empty(bounds)
    for histogram in histograms:
        total = total.plus(histogram)
    return total


def _at(reading: Totals) -> float:
    return reading.at_s


def _same(wanted: str | None, found: str) -> bool:
    return wanted is None or wanted == found


def _counted(last: Mapping[K, int], first: Mapping[K, int]) -> dict[K, int]:
    return {key: more for key, count in last.items() if (more := count - first.get(key, 0))}


def _measured(last: Mapping[K, Histogram], first: Mapping[K, Histogram]) -> dict[K, Histogram]:
    found = {}
    for key, histogram in last.items():
        earlier = first.get(key)
        if histogram is not earlier:
            more = histogram if earlier is None else histogram.minus(earlier)
            if any(more.counts):
                found[key] = more
    return found


def _together(flows: Mapping[Flow, Histogram], model: str | None, priority: str | None) -> Histogram:
    fitting = [
        histogram
        for (its_model, its_class), histogram in flows.items()
        if _same(model, its_model) and _same(priority, its_class)
    ]
    return sum_of(fitting, DURATION_BOUNDS_S)


def _sharing(reading: Totals, before: Totals) -> Totals:
    """The same, made of the histograms of the reading before where they are equal."""
    return replace(
        reading,
        request_s=_shared(reading.request_s, before.request_s),
        queue_wait_s=_shared(reading.queue_wait_s, before.queue_wait_s),
        compute_s=_shared(reading.compute_s, before.compute_s),
        batch_size=_shared(reading.batch_size, before.batch_size),
    )


def _shared(now: Mapping[K, Histogram], before: Mapping[K, Histogram]) -> dict[K, Histogram]:
    return {key: before[key] if before.get(key) == new else new for key, new in now.items()}
