"""KServe's protocol over the wire: the same answers, errors and statistics as our own, whoever is asked."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tests.e2e import calls
from tests.e2e.calls import OWN_CONNECTION, PATIENCE_S, Ending, window_request, windows
from tests.e2e.conftest import Launch
from tests.e2e.service import BUNDLED, Service
from tickring.kserve import grpc_service_pb2 as kserve

Code = grpc.StatusCode
Input = kserve.ModelInferRequest.InferInputTensor
Parameter = kserve.InferParameter
SERVICE = "/inference.GRPCInferenceService"


def infer_request(rows: int = 1, **fields: Any) -> kserve.ModelInferRequest:
    """What `window_request` asks for."""
    return kserve.ModelInferRequest(
        model_name="sp500_direction",
        inputs=[Input(name="window", datatype="FP32", shape=[rows, 50, 60])],
        raw_input_contents=[windows(rows).tobytes()],
        **fields,
    )


def x_request(model: str, values: list[float], **fields: Any) -> kserve.ModelInferRequest:
    """To a model of the zoo, with typed contents."""
    contents = kserve.InferTensorContents(fp32_contents=values)
    tensor = Input(name="x", datatype="FP32", shape=[1, len(values)], contents=contents)
    return kserve.ModelInferRequest(model_name=model, inputs=[tensor], **fields)


async def infer(channel: grpc.aio.Channel, request: kserve.ModelInferRequest | bytes) -> Ending:
    """One ModelInfer."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return await calls.unary(channel, raw, method=f"{SERVICE}/ModelInfer")


def response_of(ending: Ending) -> kserve.ModelInferResponse:
    """The answer. Fails when the call did."""
    assert ending.code is Code.OK, ending
    return kserve.ModelInferResponse.FromString(ending.raw)


async def ask(channel: grpc.aio.Channel, method: str, **fields: Any) -> Any:
    """A call about server or models, by names."""
    request, response = getattr(kserve, f"{method}Request"), getattr(kserve, f"{method}Response")
    call = channel.unary_unary(f"{SERVICE}/{method}", request.SerializeToString, response.FromString)
    return await call(request(**fields), timeout=PATIENCE_S)


async def streamed(
    channel: grpc.aio.Channel, *requests: kserve.ModelInferRequest
) -> list[kserve.ModelStreamInferResponse]:
    """All answers of one ModelStreamInfer, as they come."""
    call: Any = channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        kserve.ModelInferRequest.SerializeToString,
        kserve.ModelStreamInferResponse.FromString,
    )
    return [answer async for answer in call(iter(requests), timeout=PATIENCE_S)]


# -- predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
async def test_answers_are_those_of_predict(channel: grpc.aio.Channel, rows: int) -> None:
    """Bit by bit: the same model, in a batch of the same size."""
    ours = (await calls.unary(channel, window_request(rows))).response
    theirs = response_of(await infer(channel, infer_request(rows, id="a")))
    assert (theirs.model_name, theirs.model_version, theirs.id) == ("sp500_direction", "1", "a")
    assert [(t.name, t.datatype, list(t.shape)) for t in theirs.outputs] == [
        (t.name, "FP32", list(t.shape)) for t in ours.outputs
    ]
    assert list(theirs.raw_output_contents) == [t.data for t in ours.outputs]


async def test_response_says_where_the_time_went(channel: grpc.aio.Channel) -> None:
    """In parameters; of the server's time the queue and the model are parts."""
    parameters = response_of(await infer(channel, infer_request(2))).parameters
    value = {name: parameter.int64_param for name, parameter in parameters.items()}
    assert value["tickring_server_ns"] >= value["tickring_queue_wait_ns"] + value["tickring_compute_ns"]
    assert min(value["tickring_queue_wait_ns"], value["tickring_compute_ns"]) > 0
    assert (value["tickring_batch_size"], value["tickring_batch_bucket"]) == (2, 2)


async def test_outputs_and_types_as_asked(zoo_channel: grpc.aio.Channel) -> None:
    """Two inputs of different types, typed; one of two outputs, raw."""
    request = kserve.ModelInferRequest(
        model_name="pair",
        inputs=[
            Input(name="b", datatype="INT64", shape=[2], contents={"int64_contents": [10, 20]}),
            Input(name="a", datatype="FP32", shape=[2, 2], contents={"fp32_contents": [1, 2, 3, 4]}),
        ],
        outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name="total")],
    )
    response = response_of(await infer(zoo_channel, request))
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("total", "FP64", [2])
    assert np.frombuffer(response.raw_output_contents[0]).tolist() == [13, 27]


async def test_stream_answers_each_request_once(zoo_channel: grpc.aio.Channel) -> None:
    """A bad one and one that the model fails on do not disturb the others; more than may be in flight."""
    requests = [x_request("doubler", [float(i)] * 4, id=str(i)) for i in range(10)]
    requests[3].inputs[0].datatype = "BYTES"
    requests[7] = x_request("touchy", [1000.0] * 4, id="7")
    answers = await streamed(zoo_channel, *requests)
    by_id = {answer.infer_response.id: answer for answer in answers}
    assert len(by_id) == len(answers) == 10
    assert by_id["3"].error_message == "inputs[0].datatype: x is BYTES, allowed is FP32"
    assert by_id["7"].error_message.startswith("touchy version 1 failed on this request")
    status = {key: by_id[key].infer_response.parameters["tickring_status"].string_param for key in "37"}
    assert status == {"3": "INVALID_ARGUMENT", "7": "INTERNAL"}
    for i in {*range(10)} - {3, 7}:
        answer = by_id[str(i)]
        assert answer.error_message == ""
        values = np.frombuffer(answer.infer_response.raw_output_contents[0], "<f4").tolist()
        assert values == [2.0 * i] * 4


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (kserve.ModelInferRequest(model_name="none"), Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        (x_request("doubler", [1.0] * 3), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (x_request("doubler", [float("nan")] * 4), Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (x_request("touchy", [2000.0] * 4), Code.INTERNAL, "MODEL_ERROR"),
        (
            x_request("doubler", [1.0] * 4, parameters={"priority": Parameter(uint64_param=6)}),
            Code.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        (b"\xff\xff", Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
    ids=["no such model", "shape", "not finite", "model raises", "priority", "no message"],
)
async def test_errors_have_our_statuses_and_details(
    zoo_channel: grpc.aio.Channel, request_: kserve.ModelInferRequest | bytes, code: Code, reason: str
) -> None:
    """As Predict's have."""
    ending = await infer(zoo_channel, request_)
    assert (ending.code, ending.reason) == (code, reason)


async def test_timeout_parameter_is_a_deadline(menagerie: Service, zoo_channel: grpc.aio.Channel) -> None:
    """In microseconds: while the engine stands still, it expires in the queue."""
    request = x_request("doubler", [1.0] * 4, parameters={"timeout": Parameter(int64_param=50_000)})
    with menagerie.paused():
        pending = asyncio.create_task(infer(zoo_channel, request))
        await ask(zoo_channel, "ServerLive")  # on the same connection: the other has arrived before
        await asyncio.sleep(0.06)  # the deadline itself
    ending = await pending
    assert (ending.code, ending.reason) == (Code.DEADLINE_EXCEEDED, "EXPIRED_IN_QUEUE")


async def test_full_queue_is_full_for_both_protocols(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """One queue: what came over the one leaves no room for the other."""
    lazy = {"priority": Parameter(int64_param=5)}
    with menagerie.paused():
        waiting = [
            asyncio.create_task(infer(zoo_channel, x_request("doubler", [1.0] * 4, parameters=lazy)))
            for _ in range(5)
        ]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = (task.result() for task in done)
        ours = calls.request("doubler", calls.tensor("x", [[1.0] * 4]), priority=5)
        also = await calls.unary(zoo_channel, ours)
        assert refused.code is also.code is Code.RESOURCE_EXHAUSTED
        assert refused.message == also.message
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)


# -- statistics ---------------------------------------------------------------------------------


@pytest.fixture
async def two(launch: Launch) -> AsyncIterator[Service]:
    """A server of two front ends."""
    service = launch(settings=BUNDLED | {"TICKRING_SERVER__FRONTENDS": "2"}).ready()
    yield service
    service.stop()


async def test_statistics_are_the_services_and_outlive_a_front_end(two: Service) -> None:
    """Sixteen connections, so that both front ends take part; then one of the two dies."""
    channels = [grpc.aio.insecure_channel(two.target, options=OWN_CONNECTION) for _ in range(16)]
    try:
        for channel in channels:
            response_of(await infer(channel, infer_request(2)))
            await calls.unary(channel, window_request(1))
        expected = await _statistics(channels[0])
        assert [await _statistics(channel) for channel in channels] == [expected] * 16
        assert expected.inference_stats.success.count == 32
        assert expected.inference_count == 48
        assert expected.execution_count == 32  # nothing ran together
        assert expected.inference_stats.queue.ns > 0
        before = len(two.logged())
        await asyncio.to_thread(_kill_frontend, two)
        await asyncio.to_thread(two.wait_for, "spawned", after=before)
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))
    async with grpc.aio.insecure_channel(two.target, options=OWN_CONNECTION) as channel:
        stats = await _statistics(channel)
        assert (stats.inference_count, stats.inference_stats.success.count) == (48, 32)


def _kill_frontend(service: Service) -> None:
    os.kill(service.pid("frontend-1"), signal.SIGKILL)


async def _statistics(channel: grpc.aio.Channel) -> Any:
    (stats,) = (await ask(channel, "ModelStatistics", name="sp500_direction")).model_stats
    return stats


async def test_what_triton_clients_ask_first(channel: grpc.aio.Channel) -> None:
    """Live, ready, and the bundled model as the manifest has it."""
    assert (await ask(channel, "ServerLive")).live
    assert (await ask(channel, "ServerReady")).ready
    assert (await ask(channel, "ModelReady", name="sp500_direction", version="1")).ready
    metadata = await ask(channel, "ModelMetadata", name="sp500_direction")
    assert [(t.name, list(t.shape)) for t in metadata.inputs] == [("window", [-1, 50, 60])]
    assert (await ask(channel, "ModelConfig", name="sp500_direction")).config.max_batch_size == 512
    (index,) = (await ask(channel, "RepositoryIndex")).models
    assert (index.name, index.version, index.state) == ("sp500_direction", "1", "READY")
