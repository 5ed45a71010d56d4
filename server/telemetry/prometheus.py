"""`GET /metrics`: a reading as text, in the format of Prometheus or of OpenMetrics, which has exemplars."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as Traced
from prometheus_client.utils import floatToGoString

from server.reply import Reply
from server.telemetry import names
from server.telemetry.names import Kind, Metric
from server.telemetry.totals import Exemplar, Histogram, Totals

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain"

# Label values, and what was measured.
Numbers = Iterable[tuple[Sequence[str], float]]


async def metrics(read: Callable[[], Totals], accept: str) -> Reply:
    """Answers a scrape. `accept`: the header of that name, empty where there is none."""
    totals = read()
    # By a thread: with many models the text takes longer than anybody should wait for the event loop.
    return await asyncio.to_thread(expose, totals, accept)


def expose(totals: Totals, accept: str) -> Reply:
    """A reading in the format that is asked for."""
    if wants_openmetrics(accept):
        text: bytes = openmetrics.generate_latest(_Reading(totals))
        return Reply(text, openmetrics.CONTENT_TYPE_LATEST)
    return Reply(exposition.generate_latest(_Reading(totals)), exposition.CONTENT_TYPE_PLAIN_0_0_4)


def wants_openmetrics(accept: str) -> bool:
    """Whether this Accept header names OpenMetrics, and likes plain text no better."""
    liked = {OPENMETRICS: 0.0, PLAIN: 0.0}
    for entry in accept.split(","):
        kind, *parameters = [part.strip().lower() for part in entry.split(";")]
        if kind in liked:
            liked[kind] = max(liked[kind], _quality(parameters))
    return 0 < liked[OPENMETRICS] >= liked[PLAIN]


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class _Reading(Collector):
    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Family]:
        """Every metric of the contract and every further one, also those that nothing is measured of."""
        totals = self._totals
        yield _numbers(names.REQUESTS, totals.requests.items())
        yield _histograms(names.REQUEST_SECONDS, totals.request_s, totals.exemplars)
        yield _histograms(names.QUEUE_WAIT_SECONDS, totals.queue_wait_s)
        yield _histograms(
            names.COMPUTE_SECONDS,
            {(model, str(bucket or names.OTHER)): each for (model, bucket), each in totals.compute_s.items()},
        )
        sizes = {(model,): each for model, each in totals.batch_size.items()}
        yield _histograms(names.BATCH_SIZES, sizes)
        yield _numbers(names.BATCHES, ((labels, each.count) for labels, each in sizes.items()))
        yield _numbers(names.PADDING, _one_label(totals.padding))
        yield _numbers(names.TARGET_BATCH_SIZE, _one_label(totals.target))
        yield _numbers(names.QUEUE_DEPTH, totals.depth.items())
        yield _numbers(names.IN_FLIGHT_BATCHES, _one_label(totals.in_flight_batches))
        yield _numbers(names.SHED, totals.shed.items())
        yield _numbers(names.EXPIRED, [((), totals.expired)])
        yield _numbers(names.CANCELLED, [((), totals.cancelled)])
        # There is no cache yet.
        yield _numbers(names.CACHE_HITS, (((tier,), 0) for tier in names.CACHE_TIERS))
        yield _numbers(names.CACHE_MISSES, [((), 0)])
        yield _numbers(names.PROCESS_UP, _one_label(totals.up))
        yield _numbers(names.PROCESS_RESTARTS, _one_label(totals.restarts))
        yield _numbers(names.MODEL_READY, totals.model_ready.items())
        yield _numbers(names.SLOTS_FREE, _one_label(totals.slots_free))
        for metric in names.READINGS:
            yield _numbers(metric, _of(metric, totals.readings))


def _of(metric: Metric, readings: Mapping[tuple[str, str], float]) -> Numbers:
    for (name, label), value in readings.items():
        if name == metric.name:
            yield (label,) if metric.labels else (), value


def _one_label(values: Mapping[str, float]) -> Numbers:
    return (((label,), value) for label, value in values.items())


def _numbers(metric: Metric, values: Numbers) -> Family:
    made = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family: Family = made(metric.name, metric.help)
    for labels, value in values:
        # With its suffix: prometheus_client takes it off the name of a counter's family.
        family.add_sample(metric.name, _labels(metric, labels), value)
    return family


def _histograms(
    metric: Metric,
    histograms: Mapping[Any, Histogram],
    exemplars: Mapping[Any, Mapping[int, Exemplar]] | None = None,
) -> Family:
    """Both by label values."""
    family = HistogramMetricFamily(metric.name, metric.help)
    for key, histogram in histograms.items():
        labels = _labels(metric, key)
        traced = (exemplars or {}).get(key, {})
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        below = list(accumulate(histogram.counts))
        for position, (bound, count) in enumerate(zip(bounds, below, strict=True)):
            family.add_sample(
                f"{metric.name}_bucket",
                {**labels, "le": bound},
                count,
                exemplar=_traced(traced.get(position)),
            )
        family.add_sample(f"{metric.name}_count", labels, below[-1])
        family.add_sample(f"{metric.name}_sum", labels, histogram.total)
    return family


def _traced(exemplar: Exemplar | None) -> Traced | None:
    if exemplar is None:
        return None
    return Traced({"trace_id": exemplar.trace_id}, exemplar.value_s, exemplar.at_s)


def _labels(metric: Metric, values: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.labels, values, strict=True))
