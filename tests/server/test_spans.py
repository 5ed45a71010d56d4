"""The spans that are made of trace records."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from server.telemetry.spans import MAX_LINKS, Spans, batch_context
from server.telemetry.trace_records import Course, TraceRecord

TRACE, SPAN = 0xABCD, 0x1234
WALL_NS = 1_700_000_000_000_000_000
COURSE = Course(
    engine=1,
    engine_boot=77,
    queue_wait_ns=300,
    batch=5,
    batch_size=3,
    batch_bucket=4,
    dispatched_ns=1300,
    compute_start_ns=1310,
    compute_end_ns=1400,
)
RECORD = TraceRecord(
    method="tickring.v1.InferenceService/Predict",
    trace_id=TRACE,
    parent_id=SPAN,
    state="a=1,b=2",
    why="parent",
    wall_offset_ns=WALL_NS,
    arrived_ns=1000,
    ended_ns=1500,
    frontend=2,
    frontend_boot=66,
    model="pair",
    version="3",
    priority="batch_processing",
    rows=1,
    request_id="mine",
    code="OK",
    outcome="result",
    reason="",
    cache_hit=False,
    course=COURSE,
    dropped={},
)


@pytest.fixture
def spans() -> Spans:
    return Spans(["cpu", "cuda:0"])


def of(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


def test_request_has_a_server_span_and_its_parts(spans: Spans) -> None:
    """In the caller's trace, one below the other, each with its own time."""
    server, wait, compute = spans.of_request(RECORD)
    assert (server.name, server.kind) == (RECORD.method, SpanKind.SERVER)
    assert [span.name for span in (wait, compute)] == ["queue.wait", "batch.compute"]
    assert {span.context.trace_id for span in (server, wait, compute)} == {TRACE}
    assert {span.context.trace_state.to_header() for span in (server, wait, compute)} == {"a=1,b=2"}
    assert server.parent is not None
    assert (server.parent.span_id, server.parent.is_remote) == (SPAN, True)
    for part in (wait, compute):
        assert part.parent is not None
        assert part.parent.span_id == server.context.span_id
    times = [(s.start_time, s.end_time) for s in (server, wait, compute)]
    assert times == [(WALL_NS + a, WALL_NS + b) for a, b in ((1000, 1500), (1000, 1300), (1300, 1400))]
    assert server.status.status_code is StatusCode.UNSET


def test_attributes_are_those_of_the_contract(spans: Spans) -> None:
    """Under `tickring.`, beside those of OpenTelemetry's conventions."""
    server, wait, compute = map(of, spans.of_request(RECORD))
    model = {
        "tickring.model.name": "pair",
        "tickring.model.version": "3",
        "tickring.priority": "batch_processing",
    }
    batch = {
        "tickring.batch.number": 5,
        "tickring.batch.size": 3,
        "tickring.batch.bucket": 4,
        "tickring.batch.prepare_ns": 10,
        "tickring.device": "cuda:0",
    }
    assert server == {
        "rpc.system.name": "grpc",
        "rpc.method": RECORD.method,
        "rpc.response.status_code": "OK",
        "tickring.outcome": "result",
        "tickring.cache.hit": False,
        "tickring.traced_for": "parent",
        "tickring.request.rows": 1,
        "tickring.request.id": "mine",
        "tickring.queue.wait_ns": 300,
        **model,
        **batch,
    }
    assert wait == {**model, "tickring.queue.wait_ns": 300}
    assert compute == {**model, **batch}


def test_batch_span_links_to_all_its_requests_and_they_to_it(spans: Spans) -> None:
    """From several front ends; it belongs to the engine's process."""
    first = spans.of_request(RECORD)
    assert spans.of_batches() == [], "others of the batch may not have told yet"
    second = spans.of_request(RECORD._replace(trace_id=TRACE + 1, frontend=0, frontend_boot=55))
    (batch,) = spans.of_batches()
    assert (batch.name, batch.parent) == ("batch", None)
    assert (batch.start_time, batch.end_time) == (WALL_NS + 1300, WALL_NS + 1400)
    assert [link.context for link in batch.links] == [first[0].context, second[0].context]
    for compute in (first[2], second[2]):
        (link,) = compute.links
        assert link.context == batch.context == batch_context(77, 5)
    assert batch.resource.attributes["service.instance.id"] == "engine-1-000000000000004d"
    instances = [spans_[0].resource.attributes["service.instance.id"] for spans_ in (first, second)]
    assert instances == ["frontend-2-0000000000000042", "frontend-0-0000000000000037"]
    assert spans.of_batches() == [], "once"


def test_request_that_comes_after_its_batch_makes_no_second_batch_span(spans: Spans) -> None:
    """Two spans of one id would be two of one."""
    spans.of_request(RECORD)
    assert len(spans.of_batches(all_of_them=True)) == 1
    spans.of_request(RECORD)
    assert spans.of_batches(all_of_them=True) == []


def test_batches_of_different_processes_are_different() -> None:
    """A number starts anew with each process of an engine."""
    contexts = [batch_context(boot, number) for boot in (1, 11) for number in (1, 11)]
    assert len({context.trace_id for context in contexts}) == 4
    assert len({context.span_id for context in contexts}) == 4
    assert all(context.is_valid and context.trace_flags.sampled for context in contexts)


def test_links_of_a_batch_are_bounded(spans: Spans) -> None:
    """A batch may have thousands of rows."""
    for _ in range(MAX_LINKS + 5):
        spans.of_request(RECORD)
    (batch,) = spans.of_batches(all_of_them=True)
    assert len(batch.links) == MAX_LINKS


def test_request_that_was_lost_has_its_engine_and_no_parts(spans: Spans) -> None:
    """Nobody knows when they began."""
    course = Course(1, 77, *([0] * 7))
    lost = RECORD._replace(code="UNAVAILABLE", outcome="lost", reason="ENGINE_LOST", course=course)
    (server,) = spans.of_request(lost)
    assert (server.status.status_code, server.status.description) == (StatusCode.ERROR, "ENGINE_LOST")
    attributes = of(server)
    assert attributes["error.type"] == "UNAVAILABLE"
    assert (attributes["tickring.outcome"], attributes["tickring.device"]) == ("lost", "cuda:0")
    assert "tickring.batch.number" not in attributes


def test_request_that_expired_has_waited_only(spans: Spans) -> None:
    """It was in no batch."""
    course = Course(1, 77, 300, *([0] * 6))
    expired = RECORD._replace(
        code="DEADLINE_EXCEEDED", outcome="expired", reason="EXPIRED_IN_QUEUE", course=course
    )
    assert [span.name for span in spans.of_request(expired)] == [RECORD.method, "queue.wait"]
    assert spans.of_batches(all_of_them=True) == []


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"])
def test_what_is_the_callers_business_is_no_error_of_the_server(spans: Spans, code: str) -> None:
    """So the conventions have it; what happened is in the attributes."""
    refused = RECORD._replace(
        code=code, outcome="refused", reason="WHY", course=None, parent_id=0, model="", rows=0, request_id=""
    )
    (server,) = spans.of_request(refused)
    assert server.parent is None
    assert server.status.status_code is StatusCode.UNSET
    attributes = of(server)
    assert (attributes["rpc.response.status_code"], attributes["tickring.reason"]) == (code, "WHY")
    assert {"error.type", "tickring.model.name", "tickring.request.rows"} & attributes.keys() == set()


def test_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenTelemetry has it; which process it is, is still ours to say."""
    assert Spans(["cpu"]).of_request(RECORD)[0].resource.attributes["service.name"] == "tickring"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "predictions")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=x")
    resource = Spans(["cpu"]).of_request(RECORD)[0].resource.attributes
    assert resource["service.name"] == "predictions"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.instance.id"] == "frontend-2-0000000000000042"
