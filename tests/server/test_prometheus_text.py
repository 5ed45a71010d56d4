"""`/metrics` as text: what Prometheus reads of a reading, in both formats."""

import asyncio
import subprocess
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as plain_families
from prometheus_client.samples import Sample

from server.telemetry import names
from server.telemetry.names import Kind
from server.telemetry.prometheus import expose, metrics, wants_openmetrics
from server.telemetry.totals import DURATION_BOUNDS_S, Exemplar, Totals
from server.telemetry.trace_counts import TraceCounts
from tests.server.made_up import MODEL, NORMAL, histogram, nothing, sizes
from tests.tools import need_tools

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# What Prometheus 2 and 3 send.
SCRAPERS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
)
CONTRACT = {
    "tickring_requests_total": {"model", "priority", "code"},
    "tickring_request_seconds": {"model", "priority"},
    "tickring_queue_wait_seconds": {"model", "priority"},
    "tickring_compute_seconds": {"model", "bucket"},
    "tickring_batch_size": {"model"},
    "tickring_batches_total": {"model"},
    "tickring_target_batch_size": {"model"},
    "tickring_queue_depth": {"model", "priority"},
    "tickring_in_flight_batches": {"device"},
    "tickring_shed_total": {"model", "priority", "reason"},
    "tickring_expired_total": set(),
    "tickring_cancelled_total": set(),
    "tickring_cache_hits_total": {"tier"},
    "tickring_cache_misses_total": set(),
    "tickring_gpu_utilization_ratio": {"gpu"},
    "tickring_gpu_memory_used_bytes": {"gpu"},
    "tickring_cpu_utilization_ratio": set(),
    "tickring_memory_utilization_ratio": set(),
    "tickring_process_up": {"process"},
    "tickring_process_restarts_total": {"process"},
    "tickring_model_ready": {"model", "version"},
    "tickring_slots_free": {"frontend"},
}
TRACE = "0123456789abcdef" * 2


def everything() -> Totals:
    """A reading with a value of each metric."""
    flow = (MODEL, NORMAL)
    return replace(
        nothing(60.0),
        requests={(*flow, "OK"): 7, ("", "", "NOT_FOUND"): 1},
        request_s={flow: histogram({0.000_05: 1, 0.000_06: 2, 30.0: 4})},
        exemplars={flow: {1: Exemplar(TRACE, 0.000_06, 1_700_000_000.25)}},
        queue_wait_s={flow: histogram({0.001: 7})},
        compute_s={(MODEL, 8): histogram({0.004: 3}), (MODEL, 0): histogram({0.1: 1})},
        batch_size={MODEL: sizes({3: 2, 8: 1, 5000: 1})},
        padding={MODEL: 5},
        shed={(*flow, names.SHED_QUEUE): 2},
        expired=3,
        cancelled=4,
        depth={flow: 9},
        target={MODEL: 16},
        in_flight_batches={"cpu": 1},
        slots_free={"frontend-0": 100},
        model_ready={(MODEL, "1"): 1, (MODEL, "2"): 0},
        readings={
            **TraceCounts(spans_exported=11).by_metric(),
            (names.CPU_UTILIZATION.name, ""): 0.25,
            (names.MEMORY_UTILIZATION.name, ""): 0.5,
            (names.PROCESS_RESIDENT.name, "engine-0"): 1e9,
            (names.PROCESS_CPU.name, "engine-0"): 12.5,
            **{(metric.name, "0"): 0.75 for metric in names.READINGS if metric.labels == ("gpu",)},
        },
    )


def plain(totals: Totals) -> str:
    return expose(totals, "").body.decode()


def families(totals: Totals) -> dict[str, Family]:
    """By the name on its TYPE line."""
    found = {
        each.name + ("_total" if each.type == "counter" else ""): each
        for each in plain_families(plain(totals))
    }
    return found


def samples(totals: Totals) -> Iterator[Sample]:
    for family in families(totals).values():
        yield from family.samples


def value(totals: Totals, name: str, **labels: str) -> float:
    (found,) = (each.value for each in samples(totals) if (each.name, each.labels) == (name, labels))
    return found


def test_every_name_of_the_contract_is_there_from_the_start() -> None:
    """With its type and help, also where nothing is known yet; a name that it lost would be missed."""
    found = families(nothing())
    assert found.keys() >= CONTRACT.keys()
    assert all(each.documentation for each in found.values())
    assert value(nothing(), "tickring_expired_total") == value(nothing(), "tickring_cancelled_total") == 0
    assert value(nothing(), "tickring_cache_misses_total") == 0
    assert {each.labels["tier"] for each in found["tickring_cache_hits_total"].samples} == {"memory", "redis"}


def test_labels_are_those_of_the_contract() -> None:
    """All of them, and no others."""
    found = families(everything())
    for name, labels in CONTRACT.items():
        family = found[name]
        assert family.samples, name
        extra = {"le"} if family.type == "histogram" else set()
        for sample in family.samples:
            assert sample.labels.keys() - extra == labels, sample


def test_metrics_are_what_their_table_says() -> None:
    """Names, kinds and labels; each has a value here, so none is forgotten."""
    found = families(everything())
    table = {metric.name: metric for metric in names.METRICS}
    assert found.keys() == table.keys()
    for name, metric in table.items():
        assert found[name].type == metric.kind.name.lower(), name
        assert found[name].samples, name
        if metric.kind is not Kind.HISTOGRAM:
            assert {frozenset(sample.labels) for sample in found[name].samples} == {frozenset(metric.labels)}


def test_values_are_those_of_the_reading() -> None:
    """One of each form."""
    totals = everything()
    flow = {"model": MODEL, "priority": NORMAL}
    assert value(totals, "tickring_requests_total", **flow, code="OK") == 7
    assert value(totals, "tickring_requests_total", model="", priority="", code="NOT_FOUND") == 1
    assert value(totals, "tickring_batches_total", model=MODEL) == 4
    assert value(totals, "tickring_compute_seconds_count", model=MODEL, bucket="8") == 3
    assert value(totals, "tickring_compute_seconds_count", model=MODEL, bucket="(other)") == 1
    assert value(totals, "tickring_model_ready", model=MODEL, version="2") == 0
    assert value(totals, "tickring_process_cpu_seconds_total", process="engine-0") == 12.5
    assert value(totals, "tickring_cpu_utilization_ratio") == 0.25
    assert value(totals, "tickring_trace_records_dropped_total", reason="cap") == 0


def test_buckets_are_cumulative() -> None:
    """Each has what is at most its bound, the last has all; count and sum are those of all."""
    totals = everything()
    flow = {"model": MODEL, "priority": NORMAL}
    found = {
        sample.labels["le"]: sample.value
        for sample in samples(totals)
        if sample.name == "tickring_request_seconds_bucket"
    }
    assert [float(bound) for bound in found] == [*DURATION_BOUNDS_S, float("inf")]
    assert (found["5e-05"], found["0.0001"], found["10.0"], found["+Inf"]) == (1, 3, 3, 7)
    assert list(found.values()) == sorted(found.values())
    assert value(totals, "tickring_request_seconds_count", **flow) == 7
    assert value(totals, "tickring_request_seconds_sum", **flow) == pytest.approx(120.000_17)


def test_openmetrics_has_the_trace_of_a_bucket() -> None:
    """And the plain format none: its readers would not understand."""
    reply = expose(everything(), OPENMETRICS)
    assert reply.kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    traced = [
        (sample.labels["le"], sample.exemplar)
        for family in openmetrics_families(reply.body.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]
    ((bound, exemplar),) = traced
    assert (bound, exemplar.labels, exemplar.value) == ("0.0001", {"trace_id": TRACE}, 0.000_06)
    assert float(exemplar.timestamp or 0) == 1_700_000_000.25
    assert TRACE not in plain(everything())
    assert expose(everything(), "").kind == "text/plain; version=0.0.4; charset=utf-8"


def test_both_formats_say_the_same() -> None:
    """Sample for sample."""

    def seen(found: Iterable[Family]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in found
            for sample in family.samples
        }

    both = expose(everything(), OPENMETRICS).body.decode()
    assert seen(openmetrics_families(both)) == seen(plain_families(plain(everything())))


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        *((scraper, True) for scraper in SCRAPERS),
        (OPENMETRICS, True),
        ("APPLICATION/OpenMetrics-Text", True),
        ("text/plain, application/openmetrics-text", True),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.8", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
        ("application/openmetrics-text-2", False),
        ("text/html, */*", False),
        ("", False),
        (";,;;=,q=1", False),
    ],
)
def test_format_is_the_one_that_is_liked_best(accept: str, wants: bool) -> None:
    """Of an Accept header as scrapers, browsers and nobody send it."""
    assert wants_openmetrics(accept) == wants


async def test_text_is_made_beside_the_event_loop() -> None:
    """Only the reading is made on it."""
    threads: list[int] = []

    def read() -> Totals:
        threads.append(threading.get_ident())
        return everything()

    passed = asyncio.Event()
    asyncio.get_running_loop().call_soon(passed.set)
    reply = await metrics(read, "")
    assert passed.is_set()
    assert threads == [threading.get_ident()]
    assert reply == expose(everything(), "")


@pytest.mark.parametrize("totals", [nothing(), everything()], ids=["nothing", "everything"])
def test_promtool_finds_nothing_to_say(totals: Totals) -> None:
    """Prometheus's own linter: names, units, help."""
    need_tools("promtool")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=expose(totals, "").body, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
