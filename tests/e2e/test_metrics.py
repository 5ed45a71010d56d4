"""`/metrics` of real servers: it counts what callers saw, and no count ever goes back."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from scheduler.priority import PriorityClass
from tests.e2e import zoo
from tests.e2e.calls import PREDICT, Ending, RpcStream, exchange, request, streamed, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.live import SETTINGS, Model, admin_of, kill, traffic
from tests.e2e.metrics import Scrape, exemplars, scrape, until
from tests.e2e.service import Service
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
URGENT, NORMAL, BACKGROUND = 1, 3, 5
TIMEOUT_S = 0.3
# A look is work for the service, too.
LOOK_EVERY_S = 0.2
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
REQUESTS, SHED = "tickring_requests_total", "tickring_shed_total"


def ask(model: str, *values: float, priority: int = URGENT, **fields: Any) -> inference_pb2.PredictRequest:
    """One row of each value to a model of the zoo."""
    rows = tensor("x", [[value] * (1 if model == "hollow" else 4) for value in values])
    return request(model, rows, priority=types_pb2.Priority.Name(priority), **fields)


def infer(model: str, value: float, **fields: Any) -> kserve.ModelInferRequest:
    """The same in KServe's protocol."""
    contents = kserve.InferTensorContents(fp32_contents=[value] * 4)
    row = kserve.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP32", shape=[1, 4], contents=contents
    )
    return kserve.ModelInferRequest(model_name=model, inputs=[row], **fields)


class Tally:
    """What callers saw, by model and code."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.ends: Counter[tuple[str, str]] = Counter()

    async def unary(self, model: str, message: Any, method: str = PREDICT, **options: Any) -> Ending:
        """One call; it counts under this model, whatever it names."""
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        ending = await unary(self._channel, raw, method=method, **options)
        self.ends[model, ending.code.name] += 1
        return ending

    async def stream(self, *messages: tuple[str, bytes]) -> None:
        """These on one RPC stream, each with the model that it counts under."""
        answers, end = await exchange(self._channel, *(message for _, message in messages))
        assert end.code is Code.OK
        for sequence, ending in answers.items():
            self.ends[messages[sequence - 1][0], ending.code.name] += 1

    async def infer_stream(self, model: str, *messages: kserve.ModelInferRequest) -> None:
        """The same in KServe's protocol, which has no codes in it: all are to be answered."""
        call: Any = self._channel.stream_stream(
            STREAM_INFER,
            kserve.ModelInferRequest.SerializeToString,
            kserve.ModelStreamInferResponse.FromString,
        )
        async for answer in call(iter(messages), timeout=30.0):
            assert not answer.error_message
            self.ends[model, "OK"] += 1


@pytest.fixture(scope="module")
def small(launch: Launch, zoo_repository: Path) -> Iterator[Service]:
    """The zoo with eight slots, for nobody but these tests."""
    service = launch("--models", str(zoo_repository), settings=zoo.SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def channel(small: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(small.target) as channel:
        yield channel


def ends(found: Scrape) -> dict[tuple[str, ...], float]:
    return found.by(REQUESTS, "model", "code")


def more(after: Scrape, before: Scrape, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """What was counted between two looks."""
    counts = Counter(after.by(name, *labels))
    counts.subtract(before.by(name, *labels))
    return {key: count for key, count in counts.items() if count}


async def test_counts_are_those_of_the_callers(small: Service, channel: grpc.aio.Channel) -> None:
    """Answers, errors, refusals, expiry and cancellation, unary and streamed, in both protocols."""
    before = await asyncio.to_thread(scrape, small)
    tally = Tally(channel)
    for value in range(5):
        await tally.unary("doubler", ask("doubler", value))
        await tally.unary("doubler", infer("doubler", value), INFER)
    await tally.unary("doubler", ask("doubler", 1, 2, 3, priority=BACKGROUND, timeout={"seconds": 5}))
    await tally.unary("touchy", ask("touchy", 900.0))
    await tally.unary("hollow", ask("hollow", -1.0))
    await tally.unary("doubler", ask("doubler"))  # no rows
    await tally.unary("doubler", ask("doubler", 1, output_names=["no such output"]))
    await tally.unary("", ask("no such model", 1))
    await tally.unary("", infer("no such model", 1), INFER)
    await tally.unary("", b"\xff")
    await tally.unary("doubler", ask("doubler", 1, model_version="77"))
    await tally.stream(
        ("doubler", streamed(1, ask("doubler", 1))),
        ("touchy", streamed(2, ask("touchy", 901.0))),
        ("", streamed(3, ask("no such model", 1))),
        ("doubler", streamed(4, ask("doubler", 1, 2))),
    )
    await tally.infer_stream("doubler", *[infer("doubler", value) for value in range(3)])
    await crowd(small, channel, tally)
    after = await until(small, lambda found: more(found, before, REQUESTS, "model", "code") == tally.ends)

    assert {code for _, code in tally.ends} == {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"),
        *("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"),
    }
    assert more(after, before, SHED, "model", "reason") == {
        ("doubler", "QUEUE_FULL"): 1,
        ("doubler", "SLOTS_FULL"): 1,
    }
    timed = sum(more(after, before, "tickring_request_seconds_count", "model").values())
    refused = tally.ends["doubler", "RESOURCE_EXHAUSTED"] + sum(
        count
        for (_, code), count in tally.ends.items()
        if code in ("INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED")
    )
    assert timed == sum(tally.ends.values()) - refused
    assert after.value("tickring_expired_total") - before.value("tickring_expired_total") == 1
    # The row of the call, and that of the stream.
    assert after.value("tickring_cancelled_total") - before.value("tickring_cancelled_total") == 2
    batches = more(after, before, "tickring_batches_total", "model")
    assert batches == more(after, before, "tickring_compute_seconds_count", "model")
    assert batches == more(after, before, "tickring_batch_size_count", "model")
    assert more(after, before, "tickring_queue_depth", "model") == {}
    assert more(after, before, "tickring_slots_free", "frontend") == {}


async def crowd(small: Service, channel: grpc.aio.Channel, tally: Tally) -> None:
    """Eight slots full while the engine stands still: some are refused, some expire, some leave."""
    with small.paused():
        slow = asyncio.create_task(
            tally.unary(
                "doubler", ask("doubler", 1, priority=NORMAL, timeout={"nanos": int(TIMEOUT_S * 1e9)})
            )
        )
        gone = asyncio.create_task(tally.unary("doubler", ask("doubler", 1, priority=NORMAL)))
        stream = RpcStream(channel)
        await stream.send(streamed(1, ask("doubler", 1, priority=NORMAL)))
        stay = [
            asyncio.create_task(tally.unary("doubler", ask("doubler", 1, priority=BACKGROUND)))
            for _ in range(4)
        ]
        await until(small, lambda found: found.value("tickring_slots_free") == 1)
        assert (
            await tally.unary("doubler", ask("doubler", 1, priority=BACKGROUND))
        ).code is Code.RESOURCE_EXHAUSTED
        assert (await tally.unary("doubler", ask("doubler", 1, 2))).code is Code.RESOURCE_EXHAUSTED
        depth = await asyncio.to_thread(scrape, small)
        assert depth.by("tickring_queue_depth", "model", "priority") == {
            ("doubler", "batch_processing"): 3,
            ("doubler", "background_tasks"): 4,
        }
        gone.cancel()
        stream.call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        tally.ends["doubler", "CANCELLED"] += 1  # the message of the stream
        # Until its deadline is over: nobody says so while the engine stands still.
        await asyncio.sleep(TIMEOUT_S)
    await asyncio.gather(slow, *stay)


async def test_labels_are_bounded(small: Service, channel: grpc.aio.Channel) -> None:
    """A thousand ids, names, versions and texts of callers make no series."""

    async def all_kinds(number: int) -> None:
        text = f"text-{number}"
        await asyncio.gather(
            unary(channel, ask("doubler", 1, request_id=text, routing_key=text)),
            unary(channel, ask(text, 1)),
            unary(channel, ask("doubler", 1, model_version=text)),
            unary(channel, ask("doubler", 1, output_names=[text])),
            unary(channel, request("doubler", tensor(text, [[1.0] * 4]))),
            unary(channel, ask("doubler", 1, priority=0), metadata=(("tickring-priority", text),)),
            unary(channel, infer(text, 1).SerializeToString(), method=INFER),
        )

    await all_kinds(0)
    before = await asyncio.to_thread(scrape, small)
    for number in range(1, 150):
        await all_kinds(number)
    after = await asyncio.to_thread(scrape, small)
    assert sum(more(after, before, REQUESTS, "code").values()) == 149 * 7
    assert after.values.keys() == before.values.keys()
    models = {dict(pairs)["model"] for name, pairs in after.values if name == REQUESTS}
    assert models == {"doubler", "pair", "touchy", "hollow", ""}
    priorities = {dict(pairs)["priority"] for name, pairs in after.values if name == REQUESTS}
    assert priorities == {"", *(member.label for member in PriorityClass)}


def test_service_and_host_are_told_from_the_start(small: Service) -> None:
    """Processes, devices, models: one series for each."""
    found = scrape(small)
    processes = {("supervisor",), ("frontend-0",), ("engine-0",)}
    assert found.by("tickring_process_up", "process").keys() == processes
    assert found.by("tickring_process_resident_bytes", "process").keys() == processes
    assert found.by("tickring_process_cpu_seconds_total", "process").keys() == processes
    assert found.by("tickring_model_ready", "model", "version") == {
        (name, "1"): 1 for name in ("doubler", "pair", "touchy", "hollow")
    }
    assert found.by("tickring_slots_free", "frontend") == {("frontend-0",): 8}
    assert found.by("tickring_target_batch_size", "model") == {
        ("doubler",): 4,
        ("pair",): 4,
        ("touchy",): 4,
        ("hollow",): 2,
    }
    assert 0 < found.value("tickring_memory_utilization_ratio") < 1
    assert 0 <= found.value("tickring_cpu_utilization_ratio") <= 1
    assert ("tickring_in_flight_batches", frozenset({("device", "cpu")})) in found.values


async def test_traced_request_is_told_where_it_falls(launch: Launch, zoo_repository: Path) -> None:
    """By the trace id that its caller has sent; requests without one leave it there."""
    # Nobody listens there: what is traced does not depend on it.
    settings = zoo.SETTINGS | {
        "TICKRING_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:1",
        "TICKRING_TELEMETRY__TRACE_SAMPLE_RATIO": "0",
        "TICKRING_SLO__P99_MS": "3600000",
    }
    service = launch("--models", str(zoo_repository), settings=settings)
    await asyncio.to_thread(service.ready)
    trace_id = secrets.token_hex(16)
    async with grpc.aio.insecure_channel(service.target) as channel:
        sampled = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)
        for metadata in ((), sampled, ()):
            ending = await unary(channel, ask("doubler", 1), metadata=metadata)
            assert ending.code is Code.OK
    ((labels, exemplar),) = await asyncio.to_thread(exemplars, service)
    assert exemplar.labels == {"trace_id": trace_id}
    assert (labels["model"], labels["priority"]) == ("doubler", "real_time_trading")
    assert 0 < exemplar.value <= float(labels["le"])
    found = await until(service, lambda found: found.value("tickring_process_up", process="telemetry-0") == 1)
    assert ("tickring_trace_records_dropped_total", frozenset({("reason", "cap")})) in found.values
    service.stop()


def is_back(child: str, found: Scrape) -> bool:
    """Whether this process was restarted once, and the model is served."""
    return (
        found.value("tickring_process_restarts_total", process=child) == 1
        and found.value("tickring_process_up", process=child) == 1
        and found.value("tickring_model_ready") == 1
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = Model(tmp_path_factory.mktemp("counted"), "scale")
    model.add()
    return model


@pytest.mark.slow
@pytest.mark.timeout(400)  # three engines load, on a machine that others use too
async def test_no_count_goes_back_whoever_dies_or_comes(launch: Launch, model: Model) -> None:
    """A front end and the engine are killed, a version comes and the model goes, under load all the time."""
    service = launch("--models", str(model.repository), settings=SETTINGS)
    await asyncio.to_thread(service.ready)
    looks: list[Scrape] = []

    async def watch() -> None:
        while True:
            looks.append(await asyncio.to_thread(scrape, service))
            await asyncio.sleep(LOOK_EVERY_S)

    async with traffic(service, model) as callers, admin_of(service) as admin:
        watching = asyncio.create_task(watch())
        for child in ("frontend-1", "engine-0"):
            seen = len(service.logged())
            kill(service.pid(child))
            await asyncio.to_thread(service.wait_for, "child died", after=seen, child=child)
            await until(service, partial(is_back, child))
            await callers.goes_on()
        model.add()
        await admin.load(model)
        await callers.goes_on()
        other = Model(model.repository, "other")
        other.add()
        await admin.load(other)
        await admin.unload(other)
        await callers.goes_on()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    last = await until(service, lambda found: not found.by("tickring_queue_depth", "model"))
    for earlier, later in zip(looks, [*looks[1:], last], strict=True):
        assert later.goes_back(earlier) == {}
    assert len(looks) > 10
    told = callers.ends()
    # What a killed front end had, its callers saw fail, and nobody has counted.
    assert last.value(REQUESTS, model="scale", code="OK") >= told["OK"]
    assert last.value(REQUESTS, model="scale", code="OK") <= callers.sent
    assert last.value("tickring_process_restarts_total") == 2
    assert (
        last.value("tickring_process_up", process="engine-0")
        + last.value("tickring_process_up", process="engine-1")
        == 1
    )
    service.stop()
