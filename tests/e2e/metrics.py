"""What a running server says at `/metrics`, read as Prometheus would."""

import asyncio
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.samples import Exemplar

from tests.e2e.service import Service

PATIENCE_S = 30.0
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Scrape:
    """One look.

    Attributes:
        values: of every series.
        counters: those of them that never go back.
    """

    values: dict[Series, float]
    counters: frozenset[Series]

    def value(self, name: str, **labels: str) -> float:
        """Sum over the series of this name with these labels, whatever others they have."""
        wanted = labels.items()
        return sum(
            value for (its, pairs), value in self.values.items() if its == name and wanted <= set(pairs)
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sums by these labels, without those that are 0."""
        found = Counter[tuple[str, ...]]()
        for (its, pairs), value in self.values.items():
            if its == name and value:
                of = dict(pairs)
                found[tuple(of[label] for label in labels)] += value  # type: ignore[assignment]
        return dict(found)

    def goes_back(self, earlier: "Scrape") -> dict[Series, tuple[float, float | None]]:
        """The counters that were more before, or are there no more: by series, what they were and are."""
        return {
            series: (earlier.values[series], self.values.get(series))
            for series in earlier.counters
            if self.values.get(series, -1.0) < earlier.values[series]
        }


def scrape(service: Service) -> Scrape:
    """Fails unless the text is one that Prometheus reads."""
    values: dict[Series, float] = {}
    counters = set()
    for family in plain_families(_text(service)):
        for sample in family.samples:
            series = sample.name, frozenset(sample.labels.items())
            assert series not in values, f"{series} is there twice"
            values[series] = sample.value
            if family.type in ("counter", "histogram"):
                counters.add(series)
    return Scrape(values, frozenset(counters))


def exemplars(service: Service) -> list[tuple[dict[str, str], Exemplar]]:
    """Of OpenMetrics: the labels of a bucket, and the trace that stands there."""
    return [
        (sample.labels, sample.exemplar)
        for family in openmetrics_families(_text(service, OPENMETRICS))
        for sample in family.samples
        if sample.exemplar is not None
    ]


async def until(service: Service, condition: Callable[[Scrape], bool]) -> Scrape:
    """Polls what has no event to await; the scrape that it holds for."""

    def poll() -> Scrape:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition(found := scrape(service)):
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s"
            time.sleep(0.01)
        return found

    return await asyncio.to_thread(poll)


def _text(service: Service, accept: str = "") -> str:
    url: str = service.wait_for("ready")["status"].removesuffix("/status") + "/metrics"
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        text: str = answer.read().decode()
    return text
