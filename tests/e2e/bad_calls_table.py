"""Calls that must fail, and how. `python -m tests.e2e.bad_calls_table` makes them all and prints what came.

A bad message fails as a call of its own and, the same way, as one message of an RPC stream. A bad RPC is
wrong as a whole.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from scheduler.signature import DataType
from server.configuration import load_settings
from tests.e2e import zoo
from tests.e2e.calls import (
    PREDICT,
    Ending,
    Expected,
    RpcStream,
    ending_of,
    exchange,
    request,
    streamed,
    tensor,
    unary,
    window_request,
    windows,
)
from tests.e2e.service import BUNDLED, Service
from tickring.v1 import inference_pb2, model_pb2, types_pb2

Request = inference_pb2.PredictRequest
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
OUTPUTS = "classification_probs, regression_mean, regression_uncertainty, ensemble_weights, features"
PRIORITIES = (
    "real_time_trading, market_data_update, batch_processing, historical_analysis, background_tasks, "
    "high, normal, low or 1 to 5"
)
ZOO_MODELS = "doubler, hollow, pair, touchy"
TOO_BIG = load_settings({}, environ={}).server.max_message_bytes + 1


@dataclass(frozen=True)
class BadMessage:
    """One request that must fail, whichever way it is sent."""

    call: str
    message: Callable[[], Request]
    expected: Expected
    in_zoo: bool = False


@dataclass(frozen=True)
class BadRpc:
    """One RPC that must fail."""

    call: str
    send: Callable[[grpc.aio.Channel], Awaitable[Ending]]
    expected: Expected


def invalid(field: str, description: str) -> Expected:
    """INVALID_ARGUMENT with its details."""
    return Expected(INVALID, f"{field}: {description}", "INVALID_REQUEST", field)


def good_message(*, in_zoo: bool) -> Request:
    """What is answered after each bad call."""
    return request("doubler", tensor("x", [[1, 2, 3, 4]])) if in_zoo else window_request()


def window(**fields: Any) -> Request:
    """A request that is good but for some fields of its tensor."""
    good = {
        "name": "window",
        "data_type": types_pb2.DATA_TYPE_FP32,
        "shape": [1, 50, 60],
        "data": bytes(12000),
    }
    return request("sp500_direction", types_pb2.Tensor(**{**good, **fields}))


def with_value(value: float) -> Request:
    """A request with one odd element."""
    values = windows(2)
    values[1, 7, 9] = value
    return request("sp500_direction", tensor("window", values))


def twice() -> Request:
    """A request with an input too many."""
    message = window_request()
    message.inputs.append(message.inputs[0])
    return message


def pair(a_rows: int, b_rows: int) -> Request:
    """A request to `pair` with so many rows of each input."""
    return request("pair", tensor("a", [[1, 2]] * a_rows), tensor("b", [3] * b_rows, DataType.INT64))


def _timeout(seconds: int = 0, nanos: int = 0) -> Request:
    return window_request(timeout=Duration(seconds=seconds, nanos=nanos))


DTYPE = "inputs[0].data_type"
SHAPE = "inputs[0].shape"
DATA = "inputs[0].data"

MESSAGES = [
    BadMessage(
        "FP64 instead of FP32",
        partial(window, data_type=types_pb2.DATA_TYPE_FP64, data=bytes(24000)),
        invalid(DTYPE, "window is FP64, allowed is FP32"),
    ),
    BadMessage(
        "no data type", partial(window, data_type=0), invalid(DTYPE, "window is unspecified, allowed is FP32")
    ),
    BadMessage(
        "data type 99",
        partial(window, data_type=99),
        invalid(DTYPE, "window is unknown type 99, allowed is FP32"),
    ),
    BadMessage(
        "shape transposed",
        partial(window, shape=[1, 60, 50]),
        invalid(SHAPE, "window is [1, 60, 50], allowed is [n, 50, 60]"),
    ),
    BadMessage(
        "no batch dimension",
        partial(window, shape=[50, 60]),
        invalid(SHAPE, "window is [50, 60], allowed is [n, 50, 60]"),
    ),
    BadMessage(
        "a dimension too many",
        partial(window, shape=[1, 1, 50, 60]),
        invalid(SHAPE, "window is [1, 1, 50, 60], allowed is [n, 50, 60]"),
    ),
    BadMessage(
        "a hundred dimensions",
        partial(window, shape=[1] * 100),
        invalid(SHAPE, "window is [1, 1, 1, 1, 1, 1, 1, 1, …], allowed is [n, 50, 60]"),
    ),
    BadMessage("no shape", partial(window, shape=[]), invalid(SHAPE, "window is [], allowed is [n, 50, 60]")),
    BadMessage(
        "zero rows",
        partial(window, shape=[0, 50, 60], data=b""),
        invalid(SHAPE, "window has 0 rows, allowed are 1 to 512"),
    ),
    BadMessage(
        "minus one rows",
        partial(window, shape=[-1, 50, 60]),
        invalid(SHAPE, "window has -1 rows, allowed are 1 to 512"),
    ),
    BadMessage(
        "513 rows",
        partial(window, shape=[513, 50, 60]),
        invalid(SHAPE, "window has 513 rows, allowed are 1 to 512"),
    ),
    BadMessage(
        "2^62 rows",
        partial(window, shape=[2**62, 50, 60]),
        invalid(SHAPE, f"window has {2**62} rows, allowed are 1 to 512"),
    ),
    BadMessage(
        "a byte too few",
        partial(window, data=bytes(11999)),
        invalid(DATA, "window has 11999 bytes, FP32 [1, 50, 60] needs 12000"),
    ),
    BadMessage(
        "a byte too many",
        partial(window, data=bytes(12001)),
        invalid(DATA, "window has 12001 bytes, FP32 [1, 50, 60] needs 12000"),
    ),
    BadMessage(
        "no bytes",
        partial(window, data=b""),
        invalid(DATA, "window has 0 bytes, FP32 [1, 50, 60] needs 12000"),
    ),
    BadMessage(
        "NaN",
        partial(with_value, float("nan")),
        invalid(DATA, "window[1, 7, 9] is nan, allowed are finite values; 1 are not"),
    ),
    BadMessage(
        "minus infinity",
        partial(with_value, float("-inf")),
        invalid(DATA, "window[1, 7, 9] is -inf, allowed are finite values; 1 are not"),
    ),
    BadMessage(
        "unknown input",
        partial(window, name="windows"),
        invalid("inputs[0].name", "unknown input 'windows', allowed is window"),
    ),
    BadMessage(
        "unknown input with a name of 100 kB",
        partial(window, name="w" * 100_000),
        invalid("inputs[0].name", f"unknown input '{'w' * 64}'…, allowed is window"),
    ),
    BadMessage(
        "input without a name",
        partial(window, name=""),
        invalid("inputs[0].name", "unknown input '', allowed is window"),
    ),
    BadMessage(
        "input twice", twice, invalid("inputs[1].name", "input window is given twice, allowed is once")
    ),
    BadMessage(
        "input missing",
        partial(request, "sp500_direction"),
        invalid("inputs", "missing window, needed are window"),
    ),
    BadMessage(
        "one of two inputs missing",
        lambda: request("pair", tensor("b", [3], DataType.INT64)),
        invalid("inputs", "missing a, needed are a, b"),
        in_zoo=True,
    ),
    BadMessage(
        "inputs of 2 and 1 rows",
        partial(pair, 2, 1),
        invalid("inputs[1].shape", "b has 1 rows, a has 2; allowed is one number"),
        in_zoo=True,
    ),
    BadMessage(
        "unknown output",
        partial(window_request, output_names=["features", "regression"]),
        invalid("output_names[1]", f"unknown output 'regression', allowed is {OUTPUTS}"),
    ),
    BadMessage(
        "output twice",
        partial(window_request, output_names=["features", "regression_mean", "features"]),
        invalid("output_names[2]", "output features is asked for twice, allowed is once"),
    ),
    BadMessage(
        "unknown model",
        lambda: request("sp501", tensor("window", windows(1))),
        Expected(NOT_FOUND, "no model 'sp501'; models are sp500_direction", "MODEL_NOT_FOUND"),
    ),
    BadMessage(
        "no model name and no default model",
        lambda: request("", tensor("x", [[1, 2, 3, 4]])),
        Expected(
            NOT_FOUND,
            f"model_name is empty and no default model is set; models are {ZOO_MODELS}",
            "MODEL_NOT_FOUND",
        ),
        in_zoo=True,
    ),
    BadMessage(
        "unknown version",
        partial(window_request, model_version="2"),
        Expected(NOT_FOUND, "no version '2' of sp500_direction; versions are 1", "VERSION_NOT_FOUND"),
    ),
    BadMessage(
        "version that is no number",
        partial(window_request, model_version="newest"),
        Expected(NOT_FOUND, "no version 'newest' of sp500_direction; versions are 1", "VERSION_NOT_FOUND"),
    ),
    BadMessage(
        "priority 9",
        partial(window_request, priority=9),
        invalid("priority", "9 is no Priority, allowed is 1 to 5"),
    ),
    BadMessage(
        "priority -1",
        partial(window_request, priority=-1),
        invalid("priority", "-1 is no Priority, allowed is 1 to 5"),
    ),
    BadMessage("timeout of zero", partial(_timeout), invalid("timeout", "0 s, allowed is more than 0")),
    BadMessage(
        "negative timeout",
        partial(_timeout, -1, -500_000_000),
        invalid("timeout", "-1.5 s, allowed is more than 0"),
    ),
    BadMessage(
        "timeout of 1 ns, over before it could be queued",
        partial(_timeout, 0, 1),
        Expected(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "the deadline has passed already",
            "DEADLINE_UNREACHABLE",
        ),
    ),
    BadMessage(
        "request_id of 129 bytes",
        partial(window_request, request_id="x" * 129),
        invalid("request_id", "129 bytes, allowed are 128"),
    ),
    BadMessage(
        "routing_key of 65 characters in 130 bytes",
        partial(window_request, routing_key="é" * 65),
        invalid("routing_key", "130 bytes, allowed are 128"),
    ),
]


async def no_message(channel: grpc.aio.Channel) -> Ending:
    """An RPC stream that is closed before anything is sent."""
    answers, end = await exchange(channel)
    assert answers == {}
    return end


async def one_bad_message(
    raw: bytes, sequence: int, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()
) -> Ending:
    """The answer to a message that is bad on an RPC stream only; the messages around it are answered."""
    good = streamed(7, window_request(priority=1))
    answers, end = await exchange(
        channel, good, raw, streamed(8, window_request(priority=1)), metadata=metadata
    )
    assert answers.keys() == {7, sequence, 8}
    assert (answers[7].code, answers[8].code, end.code) == (grpc.StatusCode.OK,) * 3
    return answers[sequence]


async def huge_message(channel: grpc.aio.Channel) -> Ending:
    """A message over the limit ends the whole RPC stream: gRPC cannot skip it."""
    stream = RpcStream(channel)
    with contextlib.suppress(grpc.aio.AioRpcError):  # what the write says is not how the RPC ended
        await stream.send(bytes(TOO_BIG))
    return (await stream.rest())[1]


async def same_sequence_twice(channel: grpc.aio.Channel) -> Ending:
    """Not looked at by the server."""
    stream = RpcStream(channel)
    await stream.send(streamed(2**64 - 1, window_request()), streamed(2**64 - 1, window_request()))
    await stream.half_close()
    answers, end = await stream.rest()
    assert [(sequence, ending.code) for sequence, ending in answers] == [(2**64 - 1, grpc.StatusCode.OK)] * 2
    return end


async def cancelled_call(channel: grpc.aio.Channel) -> Ending:
    """The caller leaves."""
    call = channel.unary_unary(PREDICT, None, None)(window_request().SerializeToString())
    call.cancel()
    return await ending_of(call)


async def cancelled_stream(channel: grpc.aio.Channel) -> Ending:
    """The caller leaves with requests outstanding."""
    stream = RpcStream(channel)
    await stream.send(*[streamed(sequence, window_request()) for sequence in range(10)])
    stream.call.cancel()
    return await ending_of(stream.call)


async def get_model(channel: grpc.aio.Channel) -> Ending:
    """ModelService, in the same words."""
    raw = model_pb2.GetModelRequest(model_name="sp501").SerializeToString()
    return await unary(channel, raw, method="/tickring.v1.ModelService/GetModel")


METADATA = (("tickring-priority", "urgent"),)
BAD_METADATA = invalid("metadata tickring-priority", f"'urgent' is no priority, allowed is {PRIORITIES}")
HUGE = Expected(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    f"SERVER: Received message larger than max ({TOO_BIG} vs. {TOO_BIG - 1})",
)
UNKNOWN_METHOD = Expected(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
LEFT = Expected(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
FINE = Expected(grpc.StatusCode.OK, "")

RPCS = [
    BadRpc(
        "bytes that are no message",
        partial(unary, message=b"\xff\xff\xff"),
        invalid("request", "3 bytes are not a PredictRequest"),
    ),
    BadRpc(
        "request_id that is no UTF-8",
        partial(unary, message=b"\x1a\x02\xff\xfe"),
        invalid("request", "4 bytes are not a PredictRequest"),
    ),
    BadRpc(
        "empty message", partial(unary, message=b""), invalid("inputs", "missing window, needed are window")
    ),
    BadRpc(
        "priority 'urgent' in metadata",
        partial(unary, message=window_request(), metadata=METADATA),
        BAD_METADATA,
    ),
    BadRpc("message of 16 MiB and a byte", partial(unary, message=bytes(TOO_BIG)), HUGE),
    BadRpc(
        "RPC deadline a second ago",
        partial(unary, message=window_request(), timeout_s=-1),
        Expected(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
    ),
    BadRpc("cancelled by the caller", cancelled_call, LEFT),
    BadRpc(
        "unknown method",
        partial(unary, message=b"", method="/tickring.v1.InferenceService/Guess"),
        UNKNOWN_METHOD,
    ),
    BadRpc(
        "unknown service",
        partial(unary, message=b"", method="/tickring.v2.InferenceService/Predict"),
        UNKNOWN_METHOD,
    ),
    BadRpc(
        "GetModel of an unknown model",
        get_model,
        Expected(NOT_FOUND, "no model 'sp501'; models are sp500_direction", "MODEL_NOT_FOUND"),
    ),
    BadRpc(
        "stream: bytes that are no message",
        partial(one_bad_message, b"\xff\xff", 0),
        invalid("message", "2 bytes are not a PredictStreamRequest"),
    ),
    BadRpc(
        "stream: message without a request",
        partial(one_bad_message, inference_pb2.PredictStreamRequest(sequence=3).SerializeToString(), 3),
        invalid("request", "missing"),
    ),
    BadRpc(
        "stream: priority 'urgent' in metadata",
        partial(one_bad_message, streamed(3, window_request()), 3, metadata=METADATA),
        BAD_METADATA,
    ),
    BadRpc("stream: message of 16 MiB and a byte", huge_message, HUGE),
    BadRpc("stream: cancelled by the caller", cancelled_stream, LEFT),
    BadRpc("stream: closed without a message", no_message, FINE),
    BadRpc("stream: a sequence twice", same_sequence_twice, FINE),
]


async def answers_good_calls(channel: grpc.aio.Channel, *, in_zoo: bool = False) -> None:
    """Fails unless the server still answers."""
    good = (await unary(channel, good_message(in_zoo=in_zoo))).response
    assert len(good.outputs) == (1 if in_zoo else 5)


async def print_table(bundled: str, menagerie: str) -> None:
    """Makes every call, checks it, and prints what came as markdown."""
    print("| # | call | status | message |\n|---|---|---|---|")
    number = 0
    async with grpc.aio.insecure_channel(bundled) as channel, grpc.aio.insecure_channel(menagerie) as in_zoo:
        for bad in MESSAGES:
            number += 1
            target = in_zoo if bad.in_zoo else channel
            print_row(number, bad.call, bad.expected, await unary(target, bad.message()))
            await answers_good_calls(target, in_zoo=bad.in_zoo)
        for rpc in RPCS:
            number += 1
            print_row(number, rpc.call, rpc.expected, await rpc.send(channel))
            await answers_good_calls(channel)


def print_row(number: int, call: str, expected: Expected, ending: Ending) -> None:
    """One line of the table, if the call ended as it must."""
    expected.check(ending)
    text = ending.message.replace("|", "\\|")
    shown = text if len(text) <= 150 else f"{text[:150]}…"
    print(f"| {number} | {call} | {ending.code.name} | {shown} |", flush=True)


def main() -> None:
    """Starts the servers, makes the calls, stops the servers."""
    with tempfile.TemporaryDirectory() as folder:
        services = [
            Service(settings=BUNDLED),
            Service("--models", str(zoo.build(Path(folder))), settings=zoo.SETTINGS),
        ]
        try:
            asyncio.run(print_table(*(service.ready().target for service in services)))
            for service in services:
                service.stop()
        finally:
            for service in services:
                service.kill()


if __name__ == "__main__":
    main()
