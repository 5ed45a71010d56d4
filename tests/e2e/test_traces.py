"""Requests followed through a running service, by the spans that a collector in another process gets."""

import asyncio
import json
import os
import secrets
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from server.telemetry.sampling import TAIL_PER_S
from server.telemetry.storms import STORM_PER_S
from tests.e2e import zoo
from tests.e2e.calls import PATIENCE_S, Ending, exchange, request, streamed, tensor, unary
from tests.e2e.collector import SLEEP, Collector, Span
from tests.e2e.conftest import Launch
from tests.e2e.live import admin_of
from tests.e2e.service import Service
from tests.e2e.status import admitted
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import admin_pb2, inference_pb2, types_pb2

Code = grpc.StatusCode
SERVER = 2  # of OTLP's span kinds
PREDICT = "tickring.v1.InferenceService/Predict"
PREDICT_STREAM = "tickring.v1.InferenceService/PredictStream"
INFER = "inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "inference.GRPCInferenceService/ModelStreamInfer"
SPAN_ID = "00f067aa0ba902b7"
URGENT = types_pb2.PRIORITY_REAL_TIME_TRADING
# Nothing is slow and nothing is drawn, so what is traced is so for a reason of its own.
SETTINGS = zoo.SETTINGS | {
    "TICKRING_TELEMETRY__TRACE_SAMPLE_RATIO": "0",
    "TICKRING_SLO__P99_MS": "3600000",
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": "128",
    "TICKRING_EXECUTOR__STALL_TIMEOUT_S": "60",
    "TICKRING_EXECUTOR__HOST_LOAD_HIGH": "1000000",
    "TICKRING_SCHEDULER__CLASSES__REAL_TIME_TRADING__DEFAULT_TIMEOUT_MS": "60000",
}


class Traced:
    """A service and where its traces go."""

    def __init__(self, service: Service, collector: Collector) -> None:
        self.service = service
        self.collector = collector

    def server_span(self, trace_id: str) -> Span:
        """The one in this trace, once it is there."""
        (span,) = self.collector.wait_for("", kind=SERVER, trace_id=trace_id)
        return span

    def children(self, span: Span) -> dict[str, Span]:
        """By name, the parts of a server span. They come with it."""
        found = self.collector.spans(parent_id=span["span_id"])
        by_name = {child["name"]: child for child in found}
        assert len(by_name) == len(found), found
        return by_name

    def batch(self, compute: Span) -> Span:
        """The batch that this compute links to, once it is there."""
        ((trace_id, span_id),) = compute["links"]
        (batch,) = self.collector.wait_for("batch", trace_id=trace_id, span_id=span_id)
        return batch

    def books(self) -> dict[str, Any]:
        """As `GET /status` has them."""
        with urllib.request.urlopen(self.service.wait_for("ready")["status"], timeout=PATIENCE_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def new_trace(*, sampled: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """A trace id of a caller's own, and the metadata that carries it."""
    trace_id = secrets.token_hex(16)
    return trace_id, [("traceparent", f"00-{trace_id}-{SPAN_ID}-0{int(sampled)}"), ("tracestate", "caller=1")]


def double(rows: int = 1, **fields: Any) -> inference_pb2.PredictRequest:
    """Answered at once."""
    return request("doubler", tensor("x", [[1.0] * 4] * rows), **{"priority": URGENT, **fields})


def touchy(value: float, **fields: Any) -> inference_pb2.PredictRequest:
    """Raises above 250. Another input each time: one that keeps failing is refused."""
    return request("touchy", tensor("x", [[value] * 4]), priority=URGENT, **fields)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build(tmp_path_factory.mktemp("traced"), "doubler", "touchy")


@pytest.fixture(scope="module")
def traced(launch: Launch, repository: Path) -> Iterator[Traced]:
    collector = Collector()
    endpoint = {"TICKRING_TELEMETRY__OTLP_ENDPOINT": collector.endpoint}
    service = launch("--models", str(repository), settings=SETTINGS | endpoint).ready()
    yield Traced(service, collector)
    service.stop()
    collector.stop()


@pytest.fixture
async def channel(traced: Traced) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(traced.service.target) as channel:
        yield channel


# -- what a trace says ----------------------------------------------------------------------------


async def test_request_is_followed_from_its_caller_to_its_batch(
    traced: Traced, channel: grpc.aio.Channel
) -> None:
    """Every span where it belongs, and their times are those that the caller was told and has measured."""
    trace_id, metadata = new_trace()
    await unary(channel, double())  # the connection is there by now
    before_ns, began_ns = time.time_ns(), time.monotonic_ns()
    ending = await unary(channel, double(2, request_id="followed"), metadata=metadata)
    round_trip_ns = time.monotonic_ns() - began_ns
    timing = ending.response.timing

    server = traced.server_span(trace_id)
    assert (server["name"], server["parent_id"], server["trace_state"]) == (PREDICT, SPAN_ID, "caller=1")
    parts = traced.children(server)
    assert parts.keys() == {"queue.wait", "batch.compute"}
    wait, compute = parts["queue.wait"], parts["batch.compute"]
    batch = traced.batch(compute)

    assert {wait["trace_id"], compute["trace_id"]} == {trace_id}
    assert batch["trace_id"] != trace_id
    assert batch["links"] == [[trace_id, server["span_id"]]]
    assert batch["parent_id"] == ""

    assert server["start_ns"] == wait["start_ns"]
    assert wait["end_ns"] == compute["start_ns"] == batch["start_ns"]
    assert compute["end_ns"] == batch["end_ns"] <= server["end_ns"]
    lengths = {name: span["end_ns"] - span["start_ns"] for name, span in {**parts, "server": server}.items()}
    assert lengths == {
        "queue.wait": timing.queue_wait_ns,
        "batch.compute": timing.compute_ns,
        "server": timing.server_ns,
    }
    assert lengths["queue.wait"] + lengths["batch.compute"] <= lengths["server"] <= round_trip_ns
    # The two clocks are read one after the other, and the wall clock is steered meanwhile.
    assert abs(server["start_ns"] - before_ns) <= round_trip_ns + 10_000_000

    attributes = server["attributes"]
    assert attributes["rpc.response.status_code"] == "OK"
    assert attributes["tickring.request.id"] == "followed"
    assert attributes["tickring.batch.size"] == timing.batch_size == 2
    assert attributes["tickring.batch.bucket"] == timing.batch_bucket
    assert attributes["tickring.model.name"] == batch["attributes"]["tickring.model.name"] == "doubler"
    assert attributes["tickring.device"] == batch["attributes"]["tickring.device"] == "cpu"
    assert server["resource"]["tickring.process"] == "frontend-0"
    assert batch["resource"]["tickring.process"] == "engine-0"
    assert server["resource"]["service.instance.id"] != batch["resource"]["service.instance.id"]


async def test_requests_of_one_batch_share_its_span(traced: Traced, channel: grpc.aio.Channel) -> None:
    """It links to both of them. Of this class, a batch waits until it is full."""
    lazy = {"priority": types_pb2.PRIORITY_BACKGROUND_TASKS}
    traces = [new_trace(), new_trace()]
    endings = await asyncio.gather(
        *(unary(channel, double(2, **lazy), metadata=metadata) for _, metadata in traces)
    )
    assert {ending.response.timing.batch_size for ending in endings} == {4}
    servers = [traced.server_span(trace_id) for trace_id, _ in traces]
    batches = [traced.batch(traced.children(server)["batch.compute"]) for server in servers]
    assert batches[0] == batches[1]
    assert sorted(batches[0]["links"]) == sorted([span["trace_id"], span["span_id"]] for span in servers)


async def test_each_message_of_a_stream_has_a_span(traced: Traced, channel: grpc.aio.Channel) -> None:
    """Below the caller's, with the status of that message: one is answered, one is refused, one is none."""
    trace_id, metadata = new_trace()
    unknown = request("unheard of", tensor("x", [[1.0] * 4]))
    endings, end = await exchange(
        channel,
        streamed(1, double(request_id="one")),
        streamed(2, unknown),
        streamed(3, touchy(1001.0)),
        b"\xff",
        metadata=metadata,
    )
    assert end.code is Code.OK
    assert len(endings) == 4
    spans = traced.collector.wait_for(PREDICT_STREAM, count=4, trace_id=trace_id)
    assert {span["parent_id"] for span in spans} == {SPAN_ID}
    assert len({span["span_id"] for span in spans}) == len(spans) == 4
    told = sorted(
        (span["attributes"]["rpc.response.status_code"], span["attributes"]["tickring.outcome"])
        for span in spans
    )
    assert told == [
        ("INTERNAL", "error"),
        ("INVALID_ARGUMENT", "refused"),
        ("NOT_FOUND", "refused"),
        ("OK", "result"),
    ]


async def test_kserve_is_traced_alike(traced: Traced, channel: grpc.aio.Channel) -> None:
    """Unary and each message of a stream, by its own method names."""
    trace_id, metadata = new_trace()
    message = kserve.ModelInferRequest(
        model_name="doubler",
        id="theirs",
        inputs=[
            kserve.ModelInferRequest.InferInputTensor(
                name="x", datatype="FP32", shape=[1, 4], contents={"fp32_contents": [1, 2, 3, 4]}
            )
        ],
        parameters={"priority": kserve.InferParameter(string_param="high")},
    )
    raw = message.SerializeToString()
    assert (await unary(channel, raw, method=f"/{INFER}", metadata=metadata)).code is Code.OK
    call: Any = channel.stream_stream(f"/{INFER_STREAM}", None, None)
    answers = [answer async for answer in call(iter([raw, raw]), timeout=PATIENCE_S, metadata=metadata)]
    assert len(answers) == 2
    spans = traced.collector.wait_for(INFER, trace_id=trace_id)
    spans += traced.collector.wait_for(INFER_STREAM, count=2, trace_id=trace_id)
    for span in spans:
        assert (span["kind"], span["parent_id"]) == (SERVER, SPAN_ID)
        assert span["attributes"]["tickring.request.id"] == "theirs"
        assert traced.children(span).keys() == {"queue.wait", "batch.compute"}


# -- what is traced -------------------------------------------------------------------------------


async def marked(traced: Traced, channel: grpc.aio.Channel) -> None:
    """Waits until all that has ended before this has been told: records keep their order."""
    trace_id, metadata = new_trace()
    assert (await unary(channel, double(), metadata=metadata)).code is Code.OK
    traced.server_span(trace_id)


async def test_unsampled_request_is_not_traced(traced: Traced, channel: grpc.aio.Channel) -> None:
    """By its caller's flag, by the ratio, or because what it carries is no context."""
    trace_id, metadata = new_trace(sampled=False)
    nonsense = [("traceparent", f"00-{trace_id}-{SPAN_ID}"), ("tracestate", "caller=1")]
    for index, given in enumerate((metadata, nonsense, [])):
        ending = await unary(channel, double(request_id=f"unsampled {index}"), metadata=given)
        assert ending.code is Code.OK
    await marked(traced, channel)
    ids = [span["attributes"].get("tickring.request.id", "") for span in traced.collector.spans(kind=SERVER)]
    assert [request_id for request_id in ids if request_id.startswith("unsampled")] == []
    assert traced.collector.spans(trace_id=trace_id) == []


@pytest.mark.parametrize("with_parent", [True, False])
async def test_failed_request_is_traced(traced: Traced, channel: grpc.aio.Channel, with_parent: bool) -> None:
    """At ratio 0, and where its caller has not sampled it; the log has the cause under its batch."""
    trace_id, metadata = new_trace(sampled=False)
    name = f"failed {with_parent}"
    ending = await unary(
        channel,
        touchy(2000.0 + with_parent, request_id=name),
        metadata=metadata if with_parent else [],
    )
    assert ending.code is Code.INTERNAL
    (server,) = [
        span
        for span in traced.collector.wait_for(
            PREDICT, status=2, why="MODEL_ERROR", count=1 + (not with_parent)
        )
        if span["attributes"]["tickring.request.id"] == name
    ]
    assert (server["trace_id"] == trace_id, server["parent_id"] == SPAN_ID) == (with_parent, with_parent)
    attributes = server["attributes"]
    assert attributes["tickring.traced_for"] == "failed"
    assert attributes["error.type"] == attributes["rpc.response.status_code"] == "INTERNAL"
    line = traced.service.wait_for("batch failed", batch=attributes["tickring.batch.number"])
    assert "more than 1000" in line["error"]


async def test_ratio_and_slo_change_while_it_runs(traced: Traced, channel: grpc.aio.Channel) -> None:
    """All at ratio 1; all that are slower than nothing."""
    for change, why in (
        ({"telemetry.trace_sample_ratio": "1"}, "ratio"),
        ({"telemetry.trace_sample_ratio": "0", "slo.p99_ms": "0"}, "slow"),
    ):
        async with admin_of(traced.service) as admin:
            updates = [admin_pb2.SettingUpdate(path=path, value=value) for path, value in change.items()]
            await admin("UpdateSettings", updates=updates)
        assert (await unary(channel, double(request_id=why))).code is Code.OK
        await marked(traced, channel)
        (span,) = [
            span
            for span in traced.collector.spans(PREDICT)
            if span["attributes"].get("tickring.request.id") == why
        ]
        assert span["attributes"]["tickring.traced_for"] == why
    async with admin_of(traced.service) as admin:
        updates = [admin_pb2.SettingUpdate(path="slo.p99_ms", value="3600000")]
        await admin("UpdateSettings", updates=updates)


async def test_storm_of_refusals_is_traced_up_to_a_cap_and_logged_twice(
    traced: Traced, channel: grpc.aio.Channel
) -> None:
    """So many in a second; the others are counted."""
    asked = 400
    before = traced.books()["traces"]["records_dropped"].get("cap", 0)
    message = request("unheard of", tensor("x", [[1.0] * 4]))
    began_s = time.monotonic()
    endings = await asyncio.gather(*(unary(channel, message) for _ in range(asked)))
    seconds = int(time.monotonic() - began_s) + 2  # that these may have been in
    assert {ending.code for ending in endings} == {Code.NOT_FOUND}
    await marked(traced, channel)
    spans = [
        span
        for span in traced.collector.spans(PREDICT)
        if span["attributes"].get("tickring.reason") == "MODEL_NOT_FOUND"
    ]
    assert TAIL_PER_S <= len(spans) <= TAIL_PER_S * seconds < asked
    assert {span["attributes"]["tickring.traced_for"] for span in spans} == {"refused"}
    async with asyncio.timeout(PATIENCE_S):
        while traced.books()["traces"]["records_dropped"].get("cap", 0) != before + asked - len(spans):
            await marked(traced, channel)  # the telemetry process tells with its next export

    traced.service.wait_for("refusal storm has ended", reason="MODEL_NOT_FOUND", process="frontend-0")
    lines = [line for line in traced.service.logged() if line.get("reason") == "MODEL_NOT_FOUND"]
    storms = len(lines) // 2  # one, unless this machine stood still for a second
    assert [line["event"] for line in lines] == ["refusal storm", "refusal storm has ended"] * storms
    assert storms <= seconds
    assert STORM_PER_S < sum(line.get("requests", 0) for line in lines) <= asked


# -- deaths ---------------------------------------------------------------------------------------


async def test_death_of_the_telemetry_process_disturbs_nobody(
    traced: Traced, channel: grpc.aio.Channel
) -> None:
    """It is started again, and what comes from then on is traced."""
    pid = traced.service.pid("telemetry-0")
    lines = len(traced.service.logged())
    os.kill(pid, signal.SIGKILL)
    traced.service.wait_for("child died", child="telemetry-0")
    endings = await asyncio.gather(*(unary(channel, double()) for _ in range(50)))
    assert {ending.code for ending in endings} == {Code.OK}
    assert traced.service.wait_for("spawned", after=lines, child="telemetry-0")["pid"] != pid
    await marked(traced, channel)
    assert traced.books()["restarts"]["telemetry-0"] == 1


async def test_requests_of_an_engine_that_dies_end_as_lost(traced: Traced, channel: grpc.aio.Channel) -> None:
    """Their spans too; the batches of its successor are none of its own, though they are counted anew."""
    assert (await unary(channel, double())).code is Code.OK  # so that the next is not the first batch
    first_id, metadata = new_trace()
    assert (await unary(channel, double(), metadata=metadata)).code is Code.OK
    first = traced.batch(traced.children(traced.server_span(first_id))["batch.compute"])

    trace_id, metadata = new_trace()
    before = admitted(traced.service)
    lines = len(traced.service.logged())
    with traced.service.paused("engine-0"):
        waiting = asyncio.create_task(unary(channel, double(), metadata=metadata))
        while await asyncio.to_thread(admitted, traced.service) == before:
            pass
        os.kill(traced.service.pid("engine-0"), signal.SIGKILL)
        ending: Ending = await waiting
    assert (ending.code, ending.reason) == (Code.UNAVAILABLE, "ENGINE_LOST")
    server = traced.server_span(trace_id)
    assert server["attributes"]["tickring.outcome"] == "lost"
    assert server["attributes"]["tickring.device"] == "cpu"
    assert (server["status"], server["why"]) == (2, "ENGINE_LOST")
    assert traced.children(server) == {}

    await asyncio.to_thread(traced.service.wait_for, "engine serves again", after=lines)
    number = first["attributes"]["tickring.batch.number"]
    for _ in range(number - 1):
        assert (await unary(channel, double())).code is Code.OK
    again_id, metadata = new_trace()
    assert (await unary(channel, double(), metadata=metadata)).code is Code.OK
    compute = traced.children(traced.server_span(again_id))["batch.compute"]
    assert compute["attributes"]["tickring.batch.number"] == number > 1
    again = traced.batch(compute)
    assert again["span_id"] != first["span_id"]
    assert again["resource"]["service.instance.id"] != first["resource"]["service.instance.id"]


@pytest.mark.slow
async def test_collector_that_never_answers_is_felt_by_nobody(launch: Launch, repository: Path) -> None:
    """Every request is answered, and the service ends as always."""
    silent = Collector(SLEEP)
    endpoint = {"TICKRING_TELEMETRY__OTLP_ENDPOINT": silent.endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    service = launch("--models", str(repository), settings=SETTINGS | endpoint).ready()
    traced = Traced(service, silent)
    _, metadata = new_trace()
    async with grpc.aio.insecure_channel(service.target) as channel:
        messages = [streamed(number, double()) for number in range(1, 2001)]
        endings, end = await exchange(channel, *messages, metadata=metadata)
        assert end.code is Code.OK
        assert {ending.code for ending in endings.values()} == {Code.OK}
        assert len(endings) == len(messages)
    await asyncio.to_thread(silent.called)
    await asyncio.to_thread(service.wait_for, "traces do not reach the collector")
    counts = traced.books()["traces"]
    assert counts["spans_exported"] == 0
    assert counts["spans_dropped"] > 0
    service.stop()
    silent.stop()
