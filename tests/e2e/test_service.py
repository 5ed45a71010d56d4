"""Good calls: what clients get from a server that is well."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from client import Client
from scheduler.signature import DataType
from server.engine import SPARE_NICENESS
from server.repository import Manifest, load_repository
from server.settings import bundled_repository
from tests.e2e.calls import (
    Ending,
    RpcStream,
    array,
    exchange,
    request,
    streamed,
    tensor,
    unary,
    window_request,
    windows,
)
from tests.e2e.service import Service
from tickring.v1 import inference_pb2, model_pb2, types_pb2

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Code = grpc.StatusCode
Array = npt.NDArray[Any]
BareModel = Callable[[Array], list[Array]]
OUTPUTS = [
    "classification_probs",
    "regression_mean",
    "regression_uncertainty",
    "ensemble_weights",
    "features",
]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """What the bundled model says of itself."""
    (manifest,) = load_repository(bundled_repository()).manifests
    return manifest


@pytest.fixture(scope="module")
def bare_model(manifest: Manifest) -> BareModel:
    """The bundled model without a server."""
    module = torch.jit.load(manifest.latest.path).eval()  # type: ignore[no-untyped-call]

    def run(inputs: Array) -> list[Array]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(inputs))]

    return run


# -- predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 70])
async def test_outputs_are_the_bare_models(
    channel: grpc.aio.Channel, bare_model: BareModel, rows: int
) -> None:
    """All five, row by row; 70 rows are more than a batch holds."""
    inputs = windows(rows, seed=rows)
    message = request("sp500_direction", tensor("window", inputs))
    response = (await unary(channel, message)).response
    assert [output.name for output in response.outputs] == OUTPUTS
    assert (response.model_name, response.model_version) == ("sp500_direction", "1")
    for output, expected in zip(response.outputs, bare_model(inputs), strict=True):
        np.testing.assert_allclose(array(output), expected, rtol=0, atol=1e-6)


async def test_outputs_come_as_chosen(channel: grpc.aio.Channel, bare_model: BareModel) -> None:
    """Only those asked for, in that order."""
    chosen = ["features", "regression_mean"]
    response = (await unary(channel, window_request(2, output_names=chosen))).response
    assert [output.name for output in response.outputs] == chosen
    expected = dict(zip(OUTPUTS, bare_model(windows(2)), strict=True))
    for output in response.outputs:
        np.testing.assert_allclose(array(output), expected[output.name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("request_id", ["", "order-17", "x" * 128, "é漢\n\0" + "y" * 120], ids=len)
async def test_request_id_comes_back(channel: grpc.aio.Channel, request_id: str) -> None:
    """Unchanged, up to 128 bytes, whatever the characters."""
    assert (await unary(channel, window_request(request_id=request_id))).response.request_id == request_id


async def test_default_model_and_current_version_by_name(channel: grpc.aio.Channel) -> None:
    """Empty names the only model there is; its version may be given."""
    for name, version in (("", ""), ("", "1"), ("sp500_direction", "1")):
        message = request(name, tensor("window", windows(1)), model_version=version)
        response = (await unary(channel, message)).response
        assert (response.model_name, response.model_version) == ("sp500_direction", "1")


@pytest.mark.parametrize("rows", [1, 5])
async def test_timing_adds_up(channel: grpc.aio.Channel, rows: int) -> None:
    """What the server took is no less than the wait and the computation in it."""
    timing = (await unary(channel, window_request(rows))).response.timing
    assert timing.compute_ns > 0
    assert timing.queue_wait_ns > 0
    assert timing.server_ns >= timing.queue_wait_ns + timing.compute_ns
    assert 1 <= timing.batch_size <= timing.batch_bucket <= 64
    assert not timing.cache_hit


@pytest.mark.parametrize(
    "far",
    [{"seconds": 315_576_000_000}, {"seconds": 2**63 - 1, "nanos": 999_999_999}],
    ids=["the longest Duration", "more than a Duration"],
)
async def test_timeout_of_centuries_is_none(channel: grpc.aio.Channel, far: dict[str, int]) -> None:
    """Longer than the clock can count: answered, alone and on an RPC stream."""
    message = window_request()
    message.timeout.seconds, message.timeout.nanos = far["seconds"], far.get("nanos", 0)
    assert (await unary(channel, message)).code is Code.OK
    answers, _ = await exchange(channel, streamed(1, message), streamed(2, window_request()))
    assert [answers[sequence].code for sequence in (1, 2)] == [Code.OK, Code.OK]


async def test_bypassing_shares_no_batch(bundled: Service, channel: grpc.aio.Channel) -> None:
    """Sixteen requests at once, each in a batch of its own rows. Urgent ones: bulk is cut to its quantum."""
    alone = {
        "options": inference_pb2.PredictOptions(bypass_batching=True),
        "priority": types_pb2.PRIORITY_REAL_TIME_TRADING,
        "timeout": {"seconds": 30},
    }
    messages = [streamed(rows, window_request(rows, **alone)) for rows in range(1, 17)]
    # All of them are queued first: three rows with nothing behind them may be computed as two and one.
    stream = RpcStream(channel)
    with bundled.paused():
        await stream.send(*messages, b"\xff")
        sequence, marker = await stream.answer()
        assert (sequence, marker.code) == (0, Code.INVALID_ARGUMENT)
    await stream.half_close()
    answers, _ = await stream.rest()
    assert {rows: ending.response.timing.batch_size for rows, ending in answers} == {
        rows: rows for rows in range(1, 17)
    }


# -- priority -----------------------------------------------------------------------------------


async def check_wait(
    channel: grpc.aio.Channel,
    message: inference_pb2.PredictRequest,
    name: str,
    at_least_ms: float,
    below_ms: float,
) -> None:
    """Every lone call waits at least so long, and one of twenty, on a busy machine, less than so long."""
    metadata = [("tickring-priority", name)] if name else []
    for _ in range(20):
        response = (await unary(channel, message, metadata=metadata)).response
        wait_ms = response.timing.queue_wait_ns / 1e6
        assert wait_ms >= at_least_ms
        if wait_ms < below_ms:
            return
    pytest.fail(f"the last of twenty calls waited {wait_ms} ms, that is not less than {below_ms}")


@pytest.mark.parametrize(
    ("name", "at_least_ms", "below_ms"),
    [
        ("high", 0, 5),
        ("1", 0, 5),
        ("Real_Time_Trading", 0, 5),
        ("", 5, 20),
        ("normal", 5, 20),
        ("5", 20, 1000),
        ("background_tasks", 20, 1000),
    ],
)
async def test_priority_from_metadata(
    channel: grpc.aio.Channel, name: str, at_least_ms: float, below_ms: float
) -> None:
    """A lone request waits for company as long as its class may: 0, 5 or 20 ms."""
    await check_wait(channel, window_request(), name, at_least_ms, below_ms)


async def test_priority_of_the_request_comes_before_metadata(channel: grpc.aio.Channel) -> None:
    """Both given: the metadata is for all that a client sends, the field for this one."""
    message = window_request(priority=types_pb2.PRIORITY_REAL_TIME_TRADING)
    await check_wait(channel, message, "low", 0, 5)


async def test_priority_of_a_whole_rpc_stream(channel: grpc.aio.Channel) -> None:
    """Its metadata holds for each of its messages that does not say otherwise."""
    urgent = window_request(priority=types_pb2.PRIORITY_REAL_TIME_TRADING)
    stream = RpcStream(channel, metadata=[("tickring-priority", "low")])
    await stream.send(streamed(1, window_request()), streamed(2, urgent))
    waits = dict([await stream.answer(), await stream.answer()])
    assert waits[1].response.timing.batch_size in (1, 2)  # with the urgent one, if that came in time
    await stream.send(streamed(3, window_request()))
    _, ending = await stream.answer()
    assert ending.response.timing.queue_wait_ns >= 20e6
    await stream.half_close()


# -- RPC streams --------------------------------------------------------------------------------


async def test_stream_answers_500_interleaved_requests(
    channel: grpc.aio.Channel, bare_model: BareModel
) -> None:
    """Of one to three rows, of every class: each answered once, to its sequence, with its own outputs."""
    inputs = windows(502)
    expected = bare_model(inputs)[4]
    rows = {2**40 + index: 1 + index % 3 for index in range(500)}
    stream = RpcStream(channel)

    async def send() -> None:
        for index, (sequence, count) in enumerate(rows.items()):
            values = tensor("window", inputs[index : index + count])
            fields = {"priority": 1 + index % 5, "output_names": ["features"], "request_id": str(index)}
            await stream.send(streamed(sequence, request("", values, **fields)))
        await stream.half_close()

    _, (answers, end) = await asyncio.gather(send(), stream.rest())
    assert end.code is Code.OK
    assert sorted(sequence for sequence, _ in answers) == sorted(rows)
    for sequence, ending in answers:
        index = sequence - 2**40
        assert ending.response.request_id == str(index)
        (features,) = ending.response.outputs
        np.testing.assert_allclose(
            array(features), expected[index : index + rows[sequence]], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("sequence", [0, 1, 127, 128, 2**32 + 1, 2**64 - 1])
async def test_sequence_comes_back(channel: grpc.aio.Channel, sequence: int) -> None:
    """Whatever 64 bits hold, with an answer and with an error."""
    good, _ = await exchange(channel, streamed(sequence, window_request()))
    bad, _ = await exchange(channel, streamed(sequence, window_request(output_names=["none"])))
    assert good[sequence].code is Code.OK
    assert bad[sequence].code is Code.INVALID_ARGUMENT


async def test_half_close_answers_what_is_outstanding(bundled: Service, channel: grpc.aio.Channel) -> None:
    """Nothing had been computed when the client closed its side; everything is answered, then OK."""
    stream = RpcStream(channel)
    with bundled.paused():
        await stream.send(*[streamed(sequence, window_request()) for sequence in range(20)])
        await stream.half_close()
        assert (await unary(channel, b"", method="/grpc.health.v1.Health/Check")).code is Code.OK
    answers, end = await stream.rest()
    assert {sequence: ending.code for sequence, ending in answers} == dict.fromkeys(range(20), Code.OK)
    assert end.code is Code.OK


async def test_our_client_gets_the_same(bundled: Service, bare_model: BareModel) -> None:
    """Both ways of `tickring`'s own client, health and models."""
    inputs = windows(3)
    async with Client(bundled.target) as client:
        assert await client.health() == "SERVING"
        assert [model.name for model in await client.models()] == ["sp500_direction"]
        for prediction in (
            await client.predict({"window": inputs}, priority="high"),
            await client.predict_unary({"window": inputs}, timeout_s=10),
        ):
            for name, expected in zip(OUTPUTS, bare_model(inputs), strict=True):
                assert np.abs(prediction[name] - expected).max() < 1e-6


# -- several models, and models that fail -------------------------------------------------------


async def test_models_of_one_repository_answer_side_by_side(zoo_channel: grpc.aio.Channel) -> None:
    """Two inputs of different types in any order, scalars, and another model, on one RPC stream."""
    pair = request("pair", tensor("b", [10, -20], DataType.INT64), tensor("a", [[1, 2], [3, 4]]))
    doubler = request("doubler", tensor("x", [[1, 2, 3, 4]]))
    answers, _ = await exchange(zoo_channel, streamed(1, pair), streamed(2, doubler))
    total, b = answers[1].response.outputs
    assert (total.name, total.data_type, array(total).tolist()) == (
        "total",
        types_pb2.DATA_TYPE_FP64,
        [13, -13],
    )
    assert (b.name, b.data_type, array(b).tolist()) == ("b", types_pb2.DATA_TYPE_INT64, [10, -20])
    assert array(answers[2].response.outputs[0]).tolist() == [[2, 4, 6, 8]]


async def test_model_that_raises_fails_its_request_and_goes_on(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """INTERNAL with MODEL_ERROR; the number in the message leads to the cause in the log."""
    ending = await unary(zoo_channel, request("touchy", tensor("x", [[1000, 1, 0, 0]])))
    assert (ending.code, ending.reason) == (Code.INTERNAL, "MODEL_ERROR")
    text, _, batch = ending.message.rpartition(" ")
    assert text == "touchy version 1 failed on this request; the server's log has the cause under batch"
    line = menagerie.wait_for("batch failed", batch=int(batch))
    assert line["error"].endswith("more than 1000")
    good = await unary(zoo_channel, request("touchy", tensor("x", [[1, 2, 3, 4]])))
    assert array(good.response.outputs[0]).tolist() == [[2, 4, 6, 8]]


async def test_non_finite_output_fails_its_request_alone(zoo_channel: grpc.aio.Channel) -> None:
    """Two requests in one batch: the one whose row answers NaN fails, the other does not."""
    bad, good = (
        request("hollow", tensor("x", [[value]]), priority=types_pb2.PRIORITY_BACKGROUND_TASKS)
        for value in (-1, 1)
    )
    answers, _ = await exchange(zoo_channel, streamed(1, bad), streamed(2, good))
    assert (answers[1].code, answers[1].reason) == (Code.INTERNAL, "NON_FINITE_OUTPUT")
    assert answers[1].message == "hollow version 1 answered NaN or Inf for this request"
    assert array(answers[2].response.outputs[0]).tolist() == [[0]]
    assert answers[2].response.timing.batch_size == 2


# -- what the server says of itself -------------------------------------------------------------


async def test_models_are_described_as_in_the_manifest(channel: grpc.aio.Channel, manifest: Manifest) -> None:
    """Everything a client needs to build a request; the same from both RPCs."""
    raw = await unary(channel, b"", method="/tickring.v1.ModelService/ListModels")
    (model,) = model_pb2.ListModelsResponse.FromString(raw.raw).models
    for name in ("", "sp500_direction"):
        question = model_pb2.GetModelRequest(model_name=name).SerializeToString()
        one = await unary(channel, question, method="/tickring.v1.ModelService/GetModel")
        assert model_pb2.GetModelResponse.FromString(one.raw).model == model
    assert (model.name, model.format, model.is_default, model.max_rows) == (
        "sp500_direction",
        "torchscript",
        True,
        512,
    )
    assert model.description == manifest.description
    (version,) = model.versions
    assert (version.version, version.state, version.sha256) == (
        "1",
        model_pb2.MODEL_STATE_READY,
        manifest.latest.sha256,
    )
    for described, specs in ((model.inputs, manifest.inputs), (model.outputs, manifest.outputs)):
        assert [(spec.name, spec.data_type, tuple(spec.shape)) for spec in described] == [
            (spec.name, spec.data_type.proto_value, spec.shape) for spec in specs
        ]


async def test_models_are_listed_by_name(zoo_channel: grpc.aio.Channel) -> None:
    """None of several is the default unless it is set."""
    raw = await unary(zoo_channel, b"", method="/tickring.v1.ModelService/ListModels")
    models = model_pb2.ListModelsResponse.FromString(raw.raw).models
    assert [(model.name, model.is_default, model.max_rows) for model in models] == [
        (name, False, 2) for name in ("doubler", "hollow", "pair", "touchy")
    ]


@pytest.mark.parametrize(
    "service",
    [
        "",
        "sp500_direction",
        "tickring.v1.InferenceService",
        "inference.GRPCInferenceService",
        "tickring.v1.ModelService",
    ],
)
async def test_health_of_the_server_its_services_and_models(channel: grpc.aio.Channel, service: str) -> None:
    """All serve."""
    ending = await health(channel, service)
    assert health_pb2.HealthCheckResponse.FromString(ending.raw).status == 1


async def test_health_of_an_unknown_service(channel: grpc.aio.Channel) -> None:
    """Check says NOT_FOUND and what there is; Watch says SERVICE_UNKNOWN and stays."""
    ending = await health(channel, "sp501")
    assert (ending.code, ending.message) == (
        Code.NOT_FOUND,
        "no service 'sp501'; services are tickring.v1.InferenceService, inference.GRPCInferenceService, "
        "sp500_direction, tickring.v1.ModelService, or none for all",
    )
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", None, health_pb2.HealthCheckResponse.FromString
    )(health_pb2.HealthCheckRequest(service="sp501").SerializeToString())
    assert await watch.read() == health_pb2.HealthCheckResponse(status="SERVICE_UNKNOWN")
    watch.cancel()


async def health(channel: grpc.aio.Channel, service: str) -> Ending:
    """One Check."""
    question = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return await unary(channel, question, method="/grpc.health.v1.Health/Check")


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    """So that grpcurl and its like need no protos; also the messages of one of them."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    call: Any = ask(
        iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="tickring.v1.PredictRequest"),
            ]
        )
    )
    services, file = [answer async for answer in call]
    assert {service.name for service in services.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "tickring.v1.InferenceService",
        "tickring.v1.ModelService",
    }
    descriptors = file.file_descriptor_response.file_descriptor_proto
    assert any(b"PredictStreamRequest" in descriptor for descriptor in descriptors)


# -- how it computes ----------------------------------------------------------------------------


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a spare has the core of front ends")
def test_only_the_spare_instance_stands_back(bundled: Service) -> None:
    """It takes the core of the front ends, who go first; nobody else's priority is touched."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    engine = bundled.pid("engine-0")
    threads = [int(thread.name) for thread in Path(f"/proc/{engine}/task").iterdir()]
    priorities = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    # With those that torch starts for it.
    assert set(priorities.values()) == {ours, ours + SPARE_NICENESS}
    assert priorities[engine] == ours, "of the instance that all work goes to first"
    assert os.getpriority(os.PRIO_PROCESS, bundled.pid("frontend-0")) == ours
