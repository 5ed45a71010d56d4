"""What happens when something is full, and that what a caller leaves behind is given back.

The engine stands still meanwhile, so what is admitted stays admitted. A stream takes its messages in their
order: the error of a bad message says that all before it have been admitted.
"""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from tests.e2e.calls import (
    PREDICT,
    Ending,
    RpcStream,
    ending_of,
    request,
    streamed,
    tensor,
    unary,
    window_request,
)
from tests.e2e.service import Service
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
NORMAL = types_pb2.PRIORITY_BATCH_PROCESSING
HISTORICAL = types_pb2.PRIORITY_HISTORICAL_ANALYSIS
URGENT = types_pb2.PRIORITY_REAL_TIME_TRADING


def doubler(rows: int = 1, **fields: Any) -> inference_pb2.PredictRequest:
    """A good request to the menagerie, whose limits are small."""
    return request("doubler", tensor("x", [[1, 2, 3, 4]] * rows), **fields)


async def occupy(channel: grpc.aio.Channel, places: int, **fields: Any) -> RpcStream:
    """An RPC stream with so many one-row requests admitted, at most three."""
    stream = RpcStream(channel)
    await stream.send(*[streamed(sequence, doubler(**fields)) for sequence in range(1, places + 1)], b"\xff")
    sequence, marker = await stream.answer()
    assert (sequence, marker.code) == (0, Code.INVALID_ARGUMENT)
    return stream


async def fill(channel: grpc.aio.Channel, **fields: Any) -> list[RpcStream]:
    """Takes four slots of eight; also all the places that HISTORICAL has in the menagerie."""
    return [await occupy(channel, 3, **fields), await occupy(channel, 1, **fields)]


async def finish(stream: RpcStream) -> list[Ending]:
    """Half-closes and returns all that was answered."""
    await stream.half_close()
    answers, end = await stream.rest()
    assert end.code is Code.OK
    return [ending for _, ending in answers]


async def answered(channel: grpc.aio.Channel, message: inference_pb2.PredictRequest) -> Ending:
    """Calls again for as long as the answer is that there is no room; the hint says when to come back."""
    async with asyncio.timeout(20):
        while (ending := await unary(channel, message)).code is Code.RESOURCE_EXHAUSTED:
            hint = ending.detail(error_details_pb2.RetryInfo)
            await asyncio.sleep(hint.retry_delay.ToNanoseconds() / 1e9)
        return ending


def check_refused(ending: Ending, subject: str, message: str) -> None:
    """RESOURCE_EXHAUSTED that says what is full and when to come back."""
    assert (ending.code, ending.message, ending.reason) == (Code.RESOURCE_EXHAUSTED, message, "QUEUE_FULL")
    (violation,) = ending.detail(error_details_pb2.QuotaFailure).violations
    assert (violation.subject, violation.description) == (subject, message)
    assert 0.005 <= ending.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() / 1e9 <= 5


async def test_full_class_refuses_and_the_others_do_not(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """Four of four places: the fifth is refused at once, on a stream too; an urgent call is admitted."""
    with menagerie.paused():
        streams = await fill(zoo_channel, priority=HISTORICAL)
        full = "1 more items do not fit the queue of historical_analysis: 4 of 4 are taken"
        ending = await unary(zoo_channel, doubler(priority=HISTORICAL))
        check_refused(ending, "class:historical_analysis", full)
        await streams[1].send(streamed(9, doubler(priority=HISTORICAL)))
        sequence, ending = await streams[1].answer()
        assert sequence == 9
        check_refused(ending, "class:historical_analysis", full)
        urgent = await occupy(zoo_channel, 1, priority=URGENT)
    answers = [ending for stream in (*streams, urgent) for ending in await finish(stream)]
    assert [ending.code for ending in answers] == [Code.OK] * 5


async def test_request_is_admitted_whole_or_not_at_all(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """Two rows where one place is left are refused and take none: one row still fits."""
    with menagerie.paused():
        stream = await occupy(zoo_channel, 3, priority=HISTORICAL)
        check_refused(
            await unary(zoo_channel, doubler(rows=2, priority=HISTORICAL)),
            "class:historical_analysis",
            "2 more items do not fit the queue of historical_analysis: 3 of 4 are taken",
        )
        last = await occupy(zoo_channel, 1, priority=HISTORICAL)
    answers = [*await finish(stream), *await finish(last)]
    assert [ending.code for ending in answers] == [Code.OK] * 4


async def test_full_slots_refuse_every_class(menagerie: Service, zoo_channel: grpc.aio.Channel) -> None:
    """Eight slots are taken by two classes: even an urgent request finds none."""
    with menagerie.paused():
        streams = [
            *await fill(zoo_channel, priority=HISTORICAL),
            *await fill(zoo_channel, priority=NORMAL),
        ]
        check_refused(
            await unary(zoo_channel, doubler(priority=URGENT)),
            "slots",
            "1 more items do not fit, 0 slots are free",
        )
    answers = [ending for stream in streams for ending in await finish(stream)]
    assert [ending.code for ending in answers] == [Code.OK] * 8


async def test_stream_that_sends_too_fast_is_slowed_down(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """Twelve at once where four may be in flight and four fit the queue: none is refused."""
    stream = RpcStream(zoo_channel)
    with menagerie.paused():
        for sequence in range(12):
            await stream.send(streamed(sequence, doubler(priority=HISTORICAL)))
        # What the server reads of a connection, it reads in order: by now it has all it wants of them.
        await unary(zoo_channel, b"", method="/grpc.health.v1.Health/Check")
    assert [ending.code for ending in await finish(stream)] == [Code.OK] * 12


@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
async def test_what_an_rpc_stream_leaves_behind_is_given_back(
    menagerie: Service, zoo_channel: grpc.aio.Channel, leave: str
) -> None:
    """Five times every slot is taken and the caller leaves; then all can be taken once more, and serve."""
    for _ in range(5):
        with menagerie.paused():
            async with grpc.aio.insecure_channel(menagerie.target) as channel:
                streams = [*await fill(channel, priority=HISTORICAL), *await fill(channel, priority=NORMAL)]
                if leave == "cancel":
                    for stream in streams:
                        stream.call.cancel()
            ends = [await ending_of(stream.call) for stream in streams]
            assert {end.code for end in ends} == {Code.CANCELLED}
        await until_lanes_are_empty(zoo_channel)
    with menagerie.paused():
        streams = [*await fill(zoo_channel, priority=HISTORICAL), *await fill(zoo_channel, priority=NORMAL)]
    answers = [ending for stream in streams for ending in await finish(stream)]
    assert [ending.code for ending in answers] == [Code.OK] * 8


async def test_rpc_deadline_that_passes_in_the_queue_frees_the_slots(
    menagerie: Service, zoo_channel: grpc.aio.Channel
) -> None:
    """The caller hears of it in time, though the engine stands still."""
    for _ in range(3):
        with menagerie.paused():
            calls = [unary(zoo_channel, doubler(priority=NORMAL, rows=2), timeout_s=0.1) for _ in range(4)]
            assert {ending.code for ending in await asyncio.gather(*calls)} == {Code.DEADLINE_EXCEEDED}
        await until_lanes_are_empty(zoo_channel)


async def until_lanes_are_empty(channel: grpc.aio.Channel) -> None:
    """A lane is a FIFO: what is answered last of a class says that all before it have ended."""
    for priority in (HISTORICAL, NORMAL):
        assert (await answered(channel, doubler(priority=priority))).code is Code.OK


async def test_two_hundred_calls_that_are_cancelled_at_once(
    bundled: Service, channel: grpc.aio.Channel
) -> None:
    """All queued, all cancelled: each ends CANCELLED, and the next call is answered."""
    with bundled.paused():
        raw = window_request().SerializeToString()
        calls = [channel.unary_unary(PREDICT, None, None)(raw) for _ in range(200)]
        # The front end has taken them: it answers what came after them.
        refused = await unary(channel, window_request(output_names=["none"]))
        assert refused.code is Code.INVALID_ARGUMENT
        for call in calls:
            call.cancel()
        assert {(await ending_of(call)).code for call in calls} == {Code.CANCELLED}
    assert (await unary(channel, window_request())).code is Code.OK


async def test_calls_that_are_cancelled_while_they_run(channel: grpc.aio.Channel) -> None:
    """With the engine at work some are answered first; the rest end CANCELLED, and none is in the way."""
    raw = window_request().SerializeToString()
    calls = [channel.unary_unary(PREDICT, None, None)(raw) for _ in range(200)]
    await calls[0]
    for call in calls:
        call.cancel()
    assert {(await ending_of(call)).code for call in calls} <= {Code.OK, Code.CANCELLED}
    assert (await unary(channel, window_request())).code is Code.OK
