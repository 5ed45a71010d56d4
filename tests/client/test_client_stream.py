"""Many callers over one RPC stream."""

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from client import (
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    Prediction,
    PredictionError,
    RetryPolicy,
    Unavailable,
)
from client.stream import MAX_IN_FLIGHT

if TYPE_CHECKING:
    from tests.client.conftest import Standin, Start

NO_RETRIES = RetryPolicy(attempts=1)


async def opened_streams(client: Client) -> int:
    return int((await client.predict({}, model="counts"))["streams"].item())


def hold(client: Client, key: str, number: int = 0) -> asyncio.Task[Prediction]:
    """A call that stays outstanding until the key is released."""
    call = client.predict({}, model="hold", routing_key=key, request_id=str(number))
    return asyncio.create_task(call)


async def test_answers_out_of_order_reach_their_callers(client: Client) -> None:
    """200 callers over one RPC stream, answered last first, each get their own answer."""
    before = await opened_streams(client)
    finished: list[int] = []

    async def caller(number: int) -> None:
        prediction = await hold(client, "order", number)
        assert prediction.request_id == str(number)
        finished.append(number)

    callers = [asyncio.create_task(caller(number)) for number in range(200)]
    await client.predict({}, model="release", routing_key="order", version="200")
    await asyncio.gather(*callers)
    assert finished == list(range(199, -1, -1))
    assert await opened_streams(client) == before


async def test_a_bad_message_fails_alone(client: Client) -> None:
    """One error among many answers ends one call, and the RPC stream goes on."""
    before = await opened_streams(client)
    window = np.ones((1, 2, 3), np.float32)
    good = [client.predict({"window": window}, model="echo") for _ in range(20)]
    bad = client.predict({}, model="status", routing_key="INVALID_ARGUMENT")
    *answers, error = await asyncio.gather(*good, bad, return_exceptions=True)
    assert isinstance(error, InvalidRequest)
    assert all(isinstance(answer, Prediction) for answer in answers)
    assert await opened_streams(client) == before


@pytest.mark.parametrize(
    ("ending", "raised"),
    [
        ("UNAVAILABLE", Unavailable),
        ("RESOURCE_EXHAUSTED", Overloaded),
        ("CANCELLED", Unavailable),  # no caller cancelled, so no caller is told so
        ("INTERNAL", Unavailable),
        ("OK", Unavailable),
    ],
)
async def test_a_broken_stream_fails_every_outstanding_call(
    standin: "Standin", ending: str, raised: type[PredictionError]
) -> None:
    """Whatever the RPC ends with, OK included, nothing hangs and the next call opens a new one."""
    async with Client(standin.target, retries=NO_RETRIES) as client:
        before = await opened_streams(client)
        calls = [hold(client, f"broken {ending}") for _ in range(50)]
        await client.predict({}, model="held", routing_key=f"broken {ending}", version="50")
        calls.append(
            asyncio.create_task(client.predict({}, model="break", version=ending, routing_key=ending))
        )
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [raised] * 51
        assert len({id(end) for end in ends}) == 51
        assert await opened_streams(client) == before + 1


async def test_a_killed_server_fails_outstanding_calls_and_its_successor_answers(
    start_standin: "Start",
) -> None:
    """After SIGKILL every call ends UNAVAILABLE; the same client then reaches a new server on that port."""
    first = start_standin()
    async with Client(first.target) as client:
        calls = [hold(client, "killed") for _ in range(20)]
        await client.predict({}, model="held", routing_key="killed", version="20")
        first.kill()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [Unavailable] * 20
        start_standin("--port", str(first.port))
        await client.wait_ready(10)
        assert await opened_streams(client) == 1


async def test_breaks_under_load_are_retried(standin: "Standin") -> None:
    """However often the RPC stream breaks in the middle of writes, no caller sees it."""
    async with Client(standin.target, retries=RetryPolicy(attempts=20, max_wait_s=0.2)) as client:
        await break_under_load(client)


async def break_under_load(client: Client) -> None:
    before = await opened_streams(client)
    window = np.zeros((1, 100, 100), np.float32)
    stop = asyncio.Event()
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while not stop.is_set():
            await client.predict({"x": window}, model="echo")
            answered += 1

    callers = [asyncio.create_task(caller()) for _ in range(100)]
    for number, code in enumerate(["UNAVAILABLE", "OK", "CANCELLED"] * 3):
        seen = answered
        while answered < seen + 200:
            await client.predict({}, model="echo")
        await client.predict({}, model="break", version=code, routing_key=f"load {number}")
    stop.set()
    await asyncio.gather(*callers)
    assert await opened_streams(client) >= before + 9


async def test_a_cancelled_caller_drops_its_answer(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The late answer of a cancelled call disturbs nobody and is not logged."""
    call = hold(client, "dropped")
    await client.predict({}, model="held", routing_key="dropped", version="1")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with caplog.at_level(logging.DEBUG, "asyncio"):
        await client.predict({}, model="release", routing_key="dropped")
        await client.predict({}, model="echo")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_call_cancelled_before_it_is_sent_is_not_sent(client: Client) -> None:
    """Of 300 calls cancelled as soon as they are queued, nearly all never reach the server."""
    await client.predict({}, model="echo")
    calls = [
        asyncio.create_task(client.predict({}, model="flaky", routing_key="unsent:0:")) for _ in range(300)
    ]
    await asyncio.sleep(0)  # each has queued its message, the writer has sent none or one
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    seen = await client.predict({}, model="flaky", routing_key="unsent:0:")
    assert seen["attempts"].item() < 100


async def test_requests_in_flight_are_bounded(client: Client) -> None:
    """With every place taken the next call waits, in vain until its timeout, at once after a cancel."""
    calls = [hold(client, "full") for _ in range(MAX_IN_FLIGHT)]
    waiting = asyncio.create_task(client.predict({}, model="echo", timeout_s=0.1))
    with pytest.raises(DeadlineExceeded, match="places in flight"):
        await waiting
    calls.pop().cancel()
    assert (await client.predict({}, model="echo", timeout_s=10)).model_name == "echo"
    assert not any(call.done() for call in calls)
    await client.predict({}, model="release", routing_key="full")
    await asyncio.gather(*calls)


async def test_cancelling_a_unary_call_is_not_mistaken_for_a_close(standin: "Standin") -> None:
    """The task is cancelled, as asyncio wants it, even while the client is being closed."""
    async with Client(standin.target) as client:
        call = asyncio.create_task(client.predict_unary({}, model="hold", routing_key="unary cancel"))
        await client.predict({}, model="held", routing_key="unary cancel", version="1")
        call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("method", ["predict", "predict_unary"])
async def test_a_silent_server_ends_in_deadline_exceeded(client: Client, method: str) -> None:
    """The client stops waiting by itself, not before the timeout and little after it."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DeadlineExceeded):
        await getattr(client, method)({}, model="hold", routing_key="silent", timeout_s=0.2)
    assert 0.19 <= loop.time() - started < 2


async def test_closing_ends_what_is_outstanding(standin: "Standin") -> None:
    """Calls outstanding at `close` end as Cancelled, later ones are refused, a second close is nothing."""
    client = Client(standin.target)
    calls = [hold(client, "closing") for _ in range(10)]
    unary = client.predict_unary({}, model="hold", routing_key="closing")
    calls.append(asyncio.create_task(unary))
    await client.predict({}, model="held", routing_key="closing", version="11")
    await client.close()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [Cancelled] * 11
    for late in (client.predict({}), client.predict_unary({}), client.health()):
        with pytest.raises(Cancelled, match="closed"):
            await late
    await client.close()


@pytest.mark.parametrize("model", ["malformed", "neither"])
async def test_a_malformed_answer_fails_its_call_alone(client: Client, model: str) -> None:
    """Bytes that do not fit their shape, or no result at all, are this one call's INTERNAL error."""
    with pytest.raises(PredictionError, match="malformed answer") as raised:
        await client.predict({}, model=model)
    assert raised.value.code is grpc.StatusCode.INTERNAL
    assert not isinstance(raised.value, ModelFailed)
    assert (await client.predict({}, model="echo")).model_name == "echo"
