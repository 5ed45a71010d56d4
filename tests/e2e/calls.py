"""Requests as bytes and what became of them: what a client in any language could send and see."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from scheduler.signature import DataType
from tickring.v1 import inference_pb2, types_pb2

PREDICT = "/tickring.v1.InferenceService/Predict"
PREDICT_STREAM = "/tickring.v1.InferenceService/PredictStream"
DETAILS_TRAILER = "grpc-status-details-bin"
WINDOW = (50, 60)
# Before this, everything here should have been answered even on a machine that others use too.
PATIENCE_S = 30.0
# A connection of its own, so that the kernel picks a front end for it.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Ending:
    """How a call ended: as the RPC's own status, or as the error of one message of an RPC stream."""

    code: grpc.StatusCode
    message: str = ""
    status: Status | None = None
    raw: bytes = b""

    @property
    def response(self) -> inference_pb2.PredictResponse:
        """The answer. Fails when the call did."""
        assert self.code is grpc.StatusCode.OK, self
        return inference_pb2.PredictResponse.FromString(self.raw)

    def detail(self, kind: Any) -> Any:
        """The one detail of this type. Fails when there is none."""
        assert self.status is not None, self
        (packed,) = (detail for detail in self.status.details if detail.Is(kind.DESCRIPTOR))
        detail = kind()
        packed.Unpack(detail)
        return detail

    @property
    def reason(self) -> str:
        """Of ErrorInfo."""
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info.domain == "tickring"
        return str(info.reason)


@dataclass(frozen=True)
class Expected:
    """How a bad call must end.

    Attributes:
        message: the whole text, or a pattern of it.
        reason: of ErrorInfo; empty where gRPC itself ends the call, so without details.
        field: of the violation in BadRequest.
    """

    code: grpc.StatusCode
    message: str | re.Pattern[str]
    reason: str = ""
    field: str = ""

    def check(self, ending: Ending) -> None:
        """Fails when a call ended otherwise."""
        assert ending.code is self.code, ending
        if isinstance(self.message, str):
            assert ending.message == self.message
        else:
            assert self.message.fullmatch(ending.message), ending.message
        if not self.reason:
            assert ending.status is None
            return
        assert ending.status is not None, ending
        assert (ending.status.code, ending.status.message) == (self.code.value[0], ending.message)
        assert ending.reason == self.reason
        if self.field:
            (violation,) = ending.detail(error_details_pb2.BadRequest).field_violations
            assert violation.field == self.field
            assert f"{violation.field}: {violation.description}" == ending.message


def tensor(name: str, values: npt.ArrayLike, data_type: DataType = DataType.FP32) -> types_pb2.Tensor:
    """As a client sends it."""
    array = np.asarray(values, data_type.dtype)
    return types_pb2.Tensor(
        name=name,
        data_type=types_pb2.DataType.Name(data_type.proto_value),
        shape=array.shape,
        data=array.tobytes(),
    )


def array(message: types_pb2.Tensor) -> npt.NDArray[Any]:
    """As a client reads it."""
    data_type = DataType[types_pb2.DataType.Name(message.data_type).removeprefix("DATA_TYPE_")]
    return np.frombuffer(message.data, data_type.dtype).reshape(tuple(message.shape))


def windows(rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Different in every row."""
    return np.random.default_rng(seed).standard_normal((rows, *WINDOW), dtype=np.float32)


def window_request(rows: int = 1, **fields: Any) -> inference_pb2.PredictRequest:
    """A good request to the bundled model."""
    return request("sp500_direction", tensor("window", windows(rows)), **fields)


def request(model: str, *inputs: types_pb2.Tensor, **fields: Any) -> inference_pb2.PredictRequest:
    """Any request."""
    return inference_pb2.PredictRequest(model_name=model, inputs=inputs, **fields)


def streamed(sequence: int, message: inference_pb2.PredictRequest) -> bytes:
    """A request as one message of an RPC stream."""
    return inference_pb2.PredictStreamRequest(sequence=sequence, request=message).SerializeToString()


async def unary(
    channel: grpc.aio.Channel,
    message: inference_pb2.PredictRequest | bytes,
    *,
    method: str = PREDICT,
    timeout_s: float = PATIENCE_S,
    metadata: Metadata = (),
) -> Ending:
    """One call of its own."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    call = channel.unary_unary(method, None, None)(raw, timeout=timeout_s, metadata=tuple(metadata))
    try:
        return Ending(grpc.StatusCode.OK, raw=await call)
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        return await ending_of(call)


async def ending_of(call: Any) -> Ending:
    """How a finished RPC of any kind ended."""
    trailers = dict(await call.trailing_metadata() or ())
    status = Status.FromString(trailers[DETAILS_TRAILER]) if DETAILS_TRAILER in trailers else None
    return Ending(await call.code(), await call.details() or "", status)


class RpcStream:
    """One PredictStream RPC."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: Metadata = (), *, timeout_s: float = PATIENCE_S
    ) -> None:
        call: Any = channel.stream_stream(PREDICT_STREAM, None, None)
        self.call = call(timeout=timeout_s, metadata=tuple(metadata))

    async def send(self, *messages: bytes) -> None:
        """Sends messages in this order."""
        for message in messages:
            await self.call.write(message)

    async def half_close(self) -> None:
        """Nothing more will be sent."""
        await self.call.done_writing()

    async def answer(self) -> tuple[int, Ending]:
        """The next answer and its sequence. Fails when the RPC has ended instead."""
        answer = await self._read()
        assert answer is not None, await ending_of(self.call)
        return answer

    async def rest(self) -> tuple[list[tuple[int, Ending]], Ending]:
        """All further answers, and how the RPC ended."""
        answers = []
        while (answer := await self._read()) is not None:
            answers.append(answer)
        return answers, await ending_of(self.call)

    async def _read(self) -> tuple[int, Ending] | None:
        try:
            raw = await self.call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return None
        if not isinstance(raw, bytes):
            return None
        answer = inference_pb2.PredictStreamResponse.FromString(raw)
        if answer.WhichOneof("result") == "response":
            return answer.sequence, Ending(grpc.StatusCode.OK, raw=answer.response.SerializeToString())
        code = next(code for code in grpc.StatusCode if code.value[0] == answer.error.code)
        return answer.sequence, Ending(code, answer.error.message, answer.error)


async def exchange(
    channel: grpc.aio.Channel, *messages: bytes, metadata: Metadata = ()
) -> tuple[dict[int, Ending], Ending]:
    """Sends these over an RPC stream, half-closes, and returns the answers by sequence and the end."""
    stream = RpcStream(channel, metadata)
    await stream.send(*messages)
    await stream.half_close()
    answers, end = await stream.rest()
    by_sequence = dict(answers)
    assert len(by_sequence) == len(answers), "a sequence was answered twice"
    return by_sequence, end
