"""Sends mutated messages as calls of gRPC, and keeps account of how each of them ended."""

import asyncio
import importlib
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse

from tests.e2e.calls import DETAILS_TRAILER, OWN_CONNECTION
from tests.fuzz.corpus import Rpc, draw_metadata
from tests.fuzz.mutations import mutate
from tests.fuzz.tokens import AUTHORIZATION
from tests.fuzz.wire import encode
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2

# gRPC's C part, which has no stubs.
cygrpc = importlib.import_module("grpc._cython.cygrpc")

# A call that has not ended by then hangs.
PATIENCE_S = 60.0
MAX_STREAMED = 48
CONNECTIONS = 8
PROBLEMS_KEPT = 50
CANCELLED_HERE = "CANCELLED here"
# What grpc.aio makes up in place of the status when an RPC ends while a message is being written.
WRITE_BROKE = "INTERNAL Internal error from Core"
# Codes that say something only with their details.
_NOT_OURS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})
_TIMEOUTS_S = (0.0, 1e-6, 0.001, 0.02, 1.0, 1e6, 1e9)
_CHANNEL_OPTIONS = (
    *OWN_CONNECTION,
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
)
# What a stream of KServe's says of a failure that is the model's.
_MODEL_FAILURES = {
    "NON_FINITE_OUTPUT": re.compile("answered NaN or Inf"),
    "MODEL_ERROR": re.compile("failed on this request|this input failed"),
}


@dataclass
class Plan:
    """One call: what is sent, and how. Drawn from the seed and its number alone."""

    number: int
    rpc: Rpc
    messages: list[bytes]
    metadata: Sequence[tuple[str, str | bytes]]
    timeout_s: float | None
    cancel_after_s: float | None
    compression: grpc.Compression | None


@dataclass
class Account:
    """How messages ended, by RPC and status, and what should not have happened."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    calls: int = 0
    messages: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Notes what is wrong; the first are kept."""
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(text)


def draw(rpcs: Sequence[Rpc], seed: int, first: int, messages: int, max_message_bytes: int) -> Iterator[Plan]:
    """Calls that together carry so many messages."""
    weights = [rpc.weight for rpc in rpcs]
    number = first
    while messages > 0:
        rng = random.Random(f"{seed}/{number}")
        rpc = rng.choices(rpcs, weights)[0]
        count = min(messages, rng.randint(1, MAX_STREAMED)) if rpc.client_streams else 1
        yield _plan(rng, rpc, rpcs, number, count, max_message_bytes)
        messages -= count
        number += 1


def _plan(
    rng: random.Random, rpc: Rpc, rpcs: Sequence[Rpc], number: int, count: int, max_message_bytes: int
) -> Plan:
    drawn = [mutate(rng, rng.choice(rpc.seeds), _any_message(rng, rpcs)) for _ in range(count)]
    if rng.random() < 0.003:  # around the limit, where it is refused by its length
        size = max_message_bytes + rng.choice((-1, 0, 1, 1000))
        drawn[-1] = drawn[-1][:size] + bytes(max(0, size - len(drawn[-1])))
    return Plan(
        number=number,
        rpc=rpc,
        messages=drawn,
        metadata=draw_metadata(rng),
        timeout_s=rng.choice(_TIMEOUTS_S) if rng.random() < 0.05 else None,
        cancel_after_s=rng.uniform(0, 0.02) if rng.random() < 0.02 else None,
        compression=rng.choice((None,) * 18 + (grpc.Compression.Gzip, grpc.Compression.Deflate)),
    )


def _any_message(rng: random.Random, rpcs: Sequence[Rpc]) -> bytes:
    return encode(rng.choice(rng.choice(rpcs).seeds))


class Sender:
    """Makes calls over a few connections."""

    def __init__(self, target: str, account: Account) -> None:
        self._account = account
        self._channels = [
            grpc.aio.insecure_channel(target, options=(*_CHANNEL_OPTIONS, ("fuzz.connection", number)))
            for number in range(CONNECTIONS)
        ]
        self._methods: dict[tuple[int, str], Any] = {}

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            await channel.close(None)

    async def send(self, plan: Plan) -> None:
        """Makes one call; its end goes to the account."""
        account, rpc = self._account, plan.rpc
        ends: Sequence[str]
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                ends = await (self._streamed(plan) if rpc.server_streams else self._unary(plan))
        except TimeoutError:
            ends = ["hangs"]
        account.calls += 1
        account.slowest_s = max(account.slowest_s, time.monotonic() - begun_s)
        account.messages += len(plan.messages)
        for end in ends:
            account.ends[rpc.path, end] += 1
            if not _may_end(plan, end):
                account.problem(f"call {plan.number}, {rpc.path}: {end}")

    def _method(self, plan: Plan) -> Any:
        index = plan.number % CONNECTIONS
        key = index, plan.rpc.path
        if key not in self._methods:
            channel, rpc = self._channels[index], plan.rpc
            make: Any = channel.unary_unary
            if rpc.server_streams:
                make = channel.stream_stream if rpc.client_streams else channel.unary_stream
            self._methods[key] = make(rpc.path)
        return self._methods[key]

    def _open(self, plan: Plan, *message: bytes) -> Any:
        return self._method(plan)(
            *message, timeout=plan.timeout_s, metadata=tuple(plan.metadata), compression=plan.compression
        )

    async def _unary(self, plan: Plan) -> Sequence[str]:
        call = self._open(plan, plan.messages[0])
        canceller = _cancel_later(plan, call)
        try:
            raw = await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            if not call.done():  # this task was cancelled, for its patience
                raise
            return [await _end(plan, call)]
        finally:
            if canceller:
                canceller.cancel()
        return [_check_response(plan.rpc, raw)]

    async def _streamed(self, plan: Plan) -> Sequence[str]:
        """The ends of its messages, where they have one each, and of the call."""
        rpc = plan.rpc
        call = self._open(plan, *([] if rpc.client_streams else plan.messages))
        canceller = _cancel_later(plan, call)
        writer = asyncio.create_task(_write(call, plan.messages)) if rpc.client_streams else None
        answers: list[str] = []
        try:
            while (raw := await _read(call)) is not None:
                answers.append(_check_response(rpc, raw))
                if writer is None:  # a watch has no end of its own
                    call.cancel()
                    return answers
        finally:
            if canceller:
                canceller.cancel()
            if writer:
                writer.cancel()
                with suppress(asyncio.CancelledError):
                    await writer
        end = await _end(plan, call)
        if end == "OK" and rpc.is_prediction and len(answers) != len(plan.messages):
            return [*answers, f"OK with {len(answers)} answers to {len(plan.messages)} messages"]
        return [*answers, end] if end != "OK" or not answers else answers


def _may_end(plan: Plan, end: str) -> bool:
    if end == "OK" or end in plan.rpc.allowed or (end == WRITE_BROKE and plan.rpc.client_streams):
        return True
    if end == "UNAUTHENTICATED":
        return not plan.rpc.is_open and AUTHORIZATION not in plan.metadata
    return end == CANCELLED_HERE and plan.cancel_after_s is not None


def _cancel_later(plan: Plan, call: Any) -> asyncio.TimerHandle | None:
    if plan.cancel_after_s is None:
        return None
    return asyncio.get_running_loop().call_later(plan.cancel_after_s, call.cancel)


async def _write(call: Any, messages: Sequence[bytes]) -> None:
    # The reader learns how the RPC ended. Of one that ends while it is half-closed, gRPC raises an error
    # of its own.
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, cygrpc.ExecuteBatchError):
        for message in messages:
            await call.write(message)
        await call.done_writing()


async def _read(call: Any) -> bytes | None:
    try:
        raw = await call.read()
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        if not call.done():
            raise
        return None
    return raw if isinstance(raw, bytes) else None


async def _end(plan: Plan, call: Any) -> str:
    code: grpc.StatusCode = await call.code()
    if code is grpc.StatusCode.CANCELLED and plan.cancel_after_s is not None:
        return CANCELLED_HERE
    if code not in _NOT_OURS:
        return code.name
    trailers = dict(await call.trailing_metadata() or ())
    if DETAILS_TRAILER in trailers:
        return _of_status(Status.FromString(trailers[DETAILS_TRAILER]))
    return f"{code.name} {(await call.details() or '')[:200]}"


def _of_status(status: Status) -> str:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    if code is not grpc.StatusCode.INTERNAL:
        return code.name
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return f"INTERNAL {info.reason}"


def _check_response(rpc: Rpc, raw: bytes) -> str:
    """The end of a message, by its answer."""
    if rpc.response is ServerReflectionResponse:
        return "OK"  # repeats the request in itself, which may nest deeper than a parser goes
    try:
        message: Message = rpc.response.FromString(raw)
    except DecodeError:
        return f"answer of {len(raw)} bytes that is no {rpc.response.DESCRIPTOR.name}"
    match message:
        case inference_pb2.PredictStreamResponse():
            if message.HasField("error"):
                return _of_status(message.error)
            return _check_tensors(message.response)
        case inference_pb2.PredictResponse():
            return _check_tensors(message)
        case kserve.ModelStreamInferResponse():
            if message.error_message:
                return _of_kserve(message)
            return _check_raw(message.infer_response)
        case kserve.ModelInferResponse():
            return _check_raw(message)
    return "OK"


def _of_kserve(message: kserve.ModelStreamInferResponse) -> str:
    code = message.infer_response.parameters["tickring_status"].string_param
    if code != "INTERNAL":
        return code
    text = message.error_message
    return f"INTERNAL {next((name for name, found in _MODEL_FAILURES.items() if found.search(text)), text)}"


def _check_tensors(response: inference_pb2.PredictResponse) -> str:
    return _check_outputs((tuple(tensor.shape), tensor.data) for tensor in response.outputs)


def _check_raw(response: kserve.ModelInferResponse) -> str:
    if len(response.outputs) != len(response.raw_output_contents):
        return "answer whose outputs have not their bytes"
    shapes = (tuple(output.shape) for output in response.outputs)
    return _check_outputs(zip(shapes, response.raw_output_contents, strict=True))


def _check_outputs(outputs: "Iterator[tuple[tuple[int, ...], bytes]]") -> str:
    """All outputs of the bundled model are finite FP32."""
    seen = False
    for shape, data in outputs:
        seen = True
        values = np.frombuffer(data, "<f4")
        if values.size != np.prod(shape) or not np.isfinite(values).all():
            return f"answer of shape {shape} with {values.size} values, or one that is not finite"
    return "OK" if seen else "answer without outputs"
