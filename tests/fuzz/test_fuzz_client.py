"""Whatever a server answers, a client gets a prediction or a PredictionError, and no client hangs."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from client import Client, PredictionError
from client.codec import read_model, read_response
from client.errors import from_status
from client.retry import RetryPolicy
from tests.fuzz.mutations import mutate
from tests.fuzz.wire import Field, parse
from tickring.v1 import inference_pb2, model_pb2, types_pb2

CASES = 1000
CALLS = 60
TIMEOUT_S = 30.0
WINDOW = {"x": np.zeros((1, 2), np.float32)}


def _tree(message: Message) -> list[Field]:
    descriptor: Any = message.DESCRIPTOR
    return parse(message.SerializeToString(), descriptor)


def _response() -> inference_pb2.PredictResponse:
    tensor = types_pb2.Tensor(name="y", data_type=types_pb2.DATA_TYPE_FP32, shape=[2, 3], data=bytes(24))
    return inference_pb2.PredictResponse(
        request_id="a", model_name="m", model_version="1", outputs=[tensor], timing={"queue_wait_ns": 1}
    )


def _model() -> model_pb2.Model:
    spec = model_pb2.TensorSpec(name="x", data_type=types_pb2.DATA_TYPE_FP32, shape=[2, 3])
    version = model_pb2.ModelVersion(version="1", state=model_pb2.MODEL_STATE_READY, sha256="0")
    return model_pb2.Model(name="m", versions=[version], inputs=[spec], outputs=[spec], max_rows=4)


def _status() -> status_pb2.Status:
    status = status_pb2.Status(code=5, message="no")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = 1
    bad = error_details_pb2.BadRequest(field_violations=[{"field": "x", "description": "y"}])
    for detail in (error_details_pb2.ErrorInfo(reason="R", domain="tickring"), retry, bad):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


RESPONSE, MODEL, STATUS = _tree(_response()), _tree(_model()), _tree(_status())
STREAMED = [
    _tree(inference_pb2.PredictStreamResponse(sequence=1, response=_response())),
    _tree(inference_pb2.PredictStreamResponse(sequence=1, error=_status())),
]
seeds = st.integers(0, 1 << 32)


def drawn(seed: int, tree: list[Field], kind: Any) -> Any:
    """A mutated message, parsed; None where it is none."""
    try:
        return kind.FromString(mutate(random.Random(seed), tree, bytes(50)))
    except DecodeError:
        return None


def read(message: Any, reader: Callable[[Any], Any]) -> Any:
    """What the reader makes of it; None where it refuses it as it should."""
    with suppress(PredictionError):
        return reader(message)
    return None


@settings(max_examples=CASES, deadline=None)
@given(seeds)
def test_answers(seed: int) -> None:
    """Arrays have the shapes that came, or there are none."""
    response = drawn(seed, RESPONSE, inference_pb2.PredictResponse)
    prediction = response and read(response, read_response)
    if prediction:
        # Of outputs with one name the last one counts.
        shapes = {tensor.name: tuple(tensor.shape) for tensor in response.outputs}
        assert {name: array.shape for name, array in prediction.outputs.items()} == shapes


@pytest.mark.parametrize("shape", [[-1], [2, -1], [-1, 3], [-(1 << 63), 6], [1 << 62, 4], [1] * 70])
def test_shapes_that_are_none(shape: list[int]) -> None:
    """Are no guess at what the server may have meant."""
    response = _response()
    response.outputs[0].shape[:] = shape
    with pytest.raises(PredictionError) as raised:
        read_response(response)
    assert raised.value.code is grpc.StatusCode.INTERNAL


@settings(max_examples=CASES, deadline=None)
@given(seeds)
def test_descriptions_of_models(seed: int) -> None:
    """Of any version of the protocol."""
    model = drawn(seed, MODEL, model_pb2.Model)
    if model:
        read(model, read_model)


@settings(max_examples=CASES, deadline=None)
@given(seeds)
def test_statuses(seed: int) -> None:
    """Details that do not parse cost nothing but themselves."""
    status = drawn(seed, STATUS, status_pb2.Status)
    if status:
        assert isinstance(from_status(status), PredictionError)


class Babbler(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # no generic class when it runs
    """Answers every RPC with bytes made of a good answer, mostly no good."""

    def __init__(self) -> None:
        self._seeds = itertools.count()
        self._response, self._model = RESPONSE, MODEL

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """By the kind of the RPC."""
        if handler_call_details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._unary)

    def _babble(self, *trees: list[Field]) -> bytes:
        rng = random.Random(next(self._seeds))
        return mutate(rng, rng.choice(trees), rng.randbytes(20))

    async def _unary(self, _request: bytes, _context: Any) -> bytes:
        return self._babble(self._response, self._model, STATUS)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        # Once, so that the client is not left waiting for an answer that nobody owes it.
        async for _ in requests:
            await context.write(self._babble(*STREAMED))
            return


@pytest.fixture
async def babbling() -> AsyncIterator[str]:
    """The target of a server that babbles."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Babbler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_client_of_a_server_that_babbles(babbling: str) -> None:
    """Every call ends, with an answer or with a PredictionError, long before its deadline."""
    async with Client(babbling, retries=RetryPolicy(attempts=1)) as client:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: client.predict(WINDOW, timeout_s=TIMEOUT_S),
            lambda: client.predict_unary(WINDOW, timeout_s=TIMEOUT_S),
            client.models,
            client.model,
            client.health,
        ]
        failed = 0
        for call in calls:
            for _ in range(CALLS):
                try:
                    async with asyncio.timeout(TIMEOUT_S / 2):
                        await call()
                except PredictionError:
                    failed += 1
        assert failed > CALLS
