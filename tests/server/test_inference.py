"""From a checked request to its one answer, with the engine's end of the lanes in the test's hands."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from scheduler import _ring
from scheduler.errors import (
    DeadlineMissed,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    Overloaded,
    RequestCancelled,
    RequestError,
    Unavailable,
)
from scheduler.partition import Outcome
from scheduler.priority import DEFAULT_LIMITS, PriorityClass
from server.offenders import FAILURES
from server.rpc.inference import InferenceService
from tests.server.world import FrontEnd, request
from tickring.v1 import inference_pb2

MS = 1_000_000
DEADLINE_S = 20.0
HIGH = PriorityClass.REAL_TIME_TRADING
LOW = PriorityClass.BACKGROUND_TASKS
MakeFrontEnd = Callable[..., FrontEnd]


def waiting(front_end: FrontEnd) -> Any:
    """The one class with something queued: model, class, depth, key, enqueued, deadline."""
    (backlog,) = front_end.engine.look()
    return backlog


def check_nothing_taken(front_end: FrontEnd, slots: int = 16) -> None:
    """As if the request had never come."""
    assert front_end.partition.free_slots == slots
    assert front_end.partition.books()["admitted"] == 0
    assert front_end.engine.look() == []
    assert front_end.answers == []


# -- in -----------------------------------------------------------------------------------------


def test_rows_are_queued_in_their_class_with_its_key(front_end: FrontEnd) -> None:
    """Three items, waiting since they came; key = the time of admission and the slack of the class."""
    before_ns = _ring.now_ns()
    front_end.submit(request(3, priority=5), arrived_ns=before_ns - MS)
    model, class_index, depth, key, enqueued_ns, _ = waiting(front_end)
    assert (model, class_index, depth, enqueued_ns) == (0, LOW.index, 3, before_ns - MS)
    assert before_ns <= key - DEFAULT_LIMITS[LOW.index].slack_ns <= _ring.now_ns()


def test_slots_hold_the_rows(front_end: FrontEnd) -> None:
    """Each input of each row, at the place that the signature names."""
    front_end.submit(request(2))
    slots = np.empty(2, np.uint32)
    assert front_end.engine.take(0, _ring.now_ns(), 0, slots) == 2
    rows = front_end.arena.input_rows[slots]
    np.testing.assert_array_equal(rows[:, :24].copy().view("<f4"), np.arange(12).reshape(2, 6))
    np.testing.assert_array_equal(rows[:, 64:72].copy().view("<i8"), [[0], [1]])


@pytest.mark.parametrize(
    ("own_ms", "rpc_ms", "expected_ms"),
    [
        (None, None, DEFAULT_LIMITS[HIGH.index].default_timeout_ns // MS),
        (70, None, 70),
        (None, 80, 80),
        (70, 80, 70),
        (80, 70, 70),
        (5000, None, 5000),
    ],
)
@pytest.mark.usefixtures("no_way_back")
def test_deadline_is_the_sooner_one_and_the_default_where_there_is_none(
    front_end: FrontEnd, own_ms: int | None, rpc_ms: int | None, expected_ms: int
) -> None:
    """Counted from arrival; the class's default does not shorten what a caller says."""
    arrived_ns = _ring.now_ns()
    message = request(priority=HIGH.value)
    if own_ms is not None:
        message.timeout.FromMilliseconds(own_ms)
    expires_ns = None if rpc_ms is None else arrived_ns + rpc_ms * MS
    front_end.submit(message, arrived_ns=arrived_ns, expires_ns=expires_ns)
    assert waiting(front_end)[5] == arrived_ns + expected_ms * MS


@pytest.mark.parametrize("seconds", [2**35, 315_576_000_000, 2**63 - 1])
def test_deadline_beyond_the_clock_is_none(front_end: FrontEnd, seconds: int) -> None:
    """A Duration reaches further than 64 bits of nanoseconds."""
    front_end.submit(request(timeout=Duration(seconds=seconds)), expires_ns=10**30)
    assert waiting(front_end)[5] is None
    front_end.complete(Outcome.RESULT)
    assert isinstance(front_end.answers[0], bytes)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda it: setattr(it.admission, "draining", True), Unavailable),
        (lambda it: setattr(it.admission, "engine_lost", True), Unavailable),
        (lambda it: setattr(it.models, "ready", False), ModelNotReady),
    ],
    ids=["draining", "engine lost", "loading"],
)
def test_what_is_refused_takes_nothing(
    front_end: FrontEnd, spoil: Callable[[FrontEnd], None], error: type[RequestError]
) -> None:
    """No slot, no item, and no answer besides the error."""
    spoil(front_end)
    with pytest.raises(error):
        front_end.submit()
    check_nothing_taken(front_end)


def test_bad_request_takes_nothing(front_end: FrontEnd) -> None:
    """Checked before anything is reserved."""
    with pytest.raises(InvalidRequest):
        front_end.submit(request(output_names=["none"]))
    check_nothing_taken(front_end)


def test_request_that_does_not_fit_takes_nothing(make_front_end: MakeFrontEnd) -> None:
    """Four slots, five rows."""
    front_end = make_front_end(slots=4)
    with pytest.raises(Overloaded):
        front_end.submit(request(5))
    check_nothing_taken(front_end, slots=4)


# -- out ----------------------------------------------------------------------------------------


def test_result_is_answered_once_with_its_timing(front_end: FrontEnd) -> None:
    """And its slots are free again."""
    front_end.submit(request(2, request_id="a", output_names=["z"]))
    front_end.complete(Outcome.RESULT, count=4)
    (answer,) = front_end.answers
    assert isinstance(answer, bytes)
    response = inference_pb2.PredictResponse.FromString(answer)
    assert (response.request_id, response.model_name, response.model_version) == ("a", "pair", "3")
    assert [(output.name, list(output.shape)) for output in response.outputs] == [("z", [2])]
    timing = response.timing
    assert (timing.compute_ns, timing.batch_size, timing.batch_bucket) == (20, 2, 4)
    assert timing.server_ns >= timing.queue_wait_ns > 0
    assert front_end.partition.free_slots == 16


@pytest.mark.parametrize(
    ("outcome", "error", "reason"),
    [
        (Outcome.ERROR, ModelFailed, "MODEL_ERROR"),
        (Outcome.NON_FINITE, ModelFailed, "NON_FINITE_OUTPUT"),
    ],
)
@pytest.mark.parametrize("bad_row", [0, 1, 2])
def test_one_bad_row_fails_its_request(
    front_end: FrontEnd, outcome: Outcome, error: type[RequestError], reason: str, bad_row: int
) -> None:
    """Whichever row it is; the other request of the batch is answered."""
    front_end.submit(request(3))
    front_end.submit(request(1))
    outcomes = [Outcome.RESULT] * 4
    outcomes[bad_row] = outcome
    front_end.complete(*outcomes)
    bad, good = front_end.answers
    assert isinstance(bad, error)
    assert bad.reason == reason  # type: ignore[attr-defined]
    assert isinstance(good, bytes)
    assert front_end.partition.free_slots == 16


def test_request_of_two_batches_is_answered_with_the_second(front_end: FrontEnd) -> None:
    """Not before its last row is back."""
    front_end.submit(request(5))
    front_end.complete(Outcome.RESULT, count=3)
    assert front_end.answers == []
    front_end.complete(Outcome.RESULT, count=3)
    (answer,) = front_end.answers
    assert isinstance(answer, bytes)


def test_expired_in_the_queue(front_end: FrontEnd) -> None:
    """It says for how long it waited."""
    message = request()
    message.timeout.FromSeconds(60)
    front_end.submit(message)
    front_end.complete(Outcome.RESULT, after_ns=61_000 * MS)
    (answer,) = front_end.answers
    assert isinstance(answer, DeadlineMissed)
    assert answer.reason == "EXPIRED_IN_QUEUE"
    assert str(answer).startswith("after 61")


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.NON_FINITE])
def test_input_that_keeps_failing_is_refused(front_end: FrontEnd, outcome: Outcome) -> None:
    """All its tensors and rows, as they came; another one is let in."""
    for _ in range(FAILURES):
        front_end.submit(request(2))
        front_end.complete(Outcome.RESULT, outcome)
    with pytest.raises(ModelFailed, match=rf"^this input failed {FAILURES} times, it is refused for"):
        front_end.submit(request(2))
    assert len(front_end.answers) == FAILURES
    assert front_end.partition.free_slots == 16
    front_end.submit(request(3))


def test_input_that_was_not_computed_is_no_offender(front_end: FrontEnd) -> None:
    """Cancelled or lost: no model has failed on it."""
    for _ in range(FAILURES):
        front_end.submit(request(2)).cancel()
        front_end.complete(Outcome.RESULT)
        front_end.submit(request(2))
        front_end.partition.lose_engine(0)
        front_end.arena.native.reset_engine(0)
    front_end.submit(request(2))


def test_cancelled_by_its_caller(front_end: FrontEnd) -> None:
    """The rows come back without having been computed; cancelling once more, or too late, changes nothing."""
    ticket = front_end.submit(request(2))
    ticket.cancel()
    ticket.cancel()
    front_end.complete(Outcome.RESULT)
    (answer,) = front_end.answers
    assert isinstance(answer, RequestCancelled)
    ticket.cancel()
    assert front_end.partition.free_slots == 16


def test_cancelled_before_it_entered_the_lanes(front_end: FrontEnd) -> None:
    """It ends within the call: the engine has never seen it."""
    front_end.hold_all_but_two()
    for _ in range(2):
        front_end.submit(request(priority=LOW.value))
    ticket = front_end.submit(request(2, priority=LOW.value))
    assert front_end.entrance.held_rows[LOW.index] == 2
    ticket.cancel()
    assert [type(answer) for answer in front_end.answers] == [RequestCancelled]
    assert front_end.partition.free_slots == 14


def test_lost_with_its_engine(front_end: FrontEnd) -> None:
    """Trying again is safe, and the slots are free."""
    front_end.submit(request(2))
    front_end.partition.lose_engine(0)
    (answer,) = front_end.answers
    assert isinstance(answer, Unavailable)
    assert (answer.reason, answer.retry_after_s) == ("ENGINE_LOST", 1.0)
    assert front_end.partition.free_slots == 16


# -- RPC streams --------------------------------------------------------------------------------


@asynccontextmanager
async def serving(service: InferenceService) -> AsyncIterator[grpc.aio.Channel]:
    """The service on a socket, and a channel to it."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def open_stream(channel: grpc.aio.Channel) -> Any:
    """A PredictStream RPC."""
    call: Any = channel.stream_stream(
        "/tickring.v1.InferenceService/PredictStream",
        inference_pb2.PredictStreamRequest.SerializeToString,
        inference_pb2.PredictStreamResponse.FromString,
    )
    return call(timeout=DEADLINE_S)


class Calls:
    """Follows the calls of one method, which are made all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of: object, name: str) -> None:
        self._made: asyncio.Queue[None] = asyncio.Queue()
        method = getattr(of, name)

        def follow(*arguments: Any, **named: Any) -> Any:
            self._made.put_nowait(None)
            return method(*arguments, **named)

        monkeypatch.setattr(of, name, follow)

    async def wait(self, count: int) -> None:
        """For so many more."""
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(count):
                await self._made.get()


def streamed(sequence: int) -> inference_pb2.PredictStreamRequest:
    """A good message."""
    return inference_pb2.PredictStreamRequest(sequence=sequence, request=request())


async def test_stream_that_comes_during_a_drain_is_refused(front_end: FrontEnd) -> None:
    """It had been accepted just before; left alone it would hold the drain."""
    service = InferenceService(front_end.desk, 4)
    async with serving(service) as channel:
        service.drain()
        call = open_stream(channel)
        assert (await call.code(), await call.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server is draining",
        )


async def test_bug_while_reading_does_not_look_like_an_end(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expected ends the RPC with an error, never with OK and answers missing."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(front_end.desk, "submit", broken)
    async with serving(InferenceService(front_end.desk, 4)) as channel:
        call = open_stream(channel)
        await call.write(streamed(1))
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.UNKNOWN


async def test_leaving_a_stream_cancels_what_is_queued(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine skips it: nothing is computed for somebody who has gone."""
    pushes, cancels = (Calls(monkeypatch, front_end.partition, name) for name in ("push", "cancel"))
    async with serving(InferenceService(front_end.desk, 4)) as channel:
        call = open_stream(channel)
        for sequence in range(3):
            await call.write(streamed(sequence))
        await pushes.wait(3)
        call.cancel()
        await cancels.wait(3)
    front_end.complete(Outcome.RESULT)
    assert front_end.partition.books()["ended"][Outcome.CANCELLED] == 3
    assert front_end.partition.free_slots == 16


async def test_leaving_a_stream_ends_what_is_held(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two have entered the lanes, two wait before them: those end while the stream is taken down."""
    front_end.hold_all_but_two()
    enters, cancels = (Calls(monkeypatch, front_end.entrance, name) for name in ("enter", "cancel"))
    async with serving(InferenceService(front_end.desk, 8)) as channel:
        call = open_stream(channel)
        for sequence in range(4):
            await call.write(streamed(sequence))
        await enters.wait(4)
        assert sum(front_end.entrance.held_rows) == 2
        call.cancel()
        await cancels.wait(4)
    assert not front_end.entrance.holds
    front_end.complete(Outcome.RESULT)
    assert front_end.partition.books()["ended"][Outcome.CANCELLED] == 4
    assert front_end.partition.free_slots == 16


async def test_leaving_a_call_cancels_what_is_queued(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a call of its own."""
    pushes, cancels = (Calls(monkeypatch, front_end.partition, name) for name in ("push", "cancel"))
    async with serving(InferenceService(front_end.desk, 4)) as channel:
        predict = channel.unary_unary("/tickring.v1.InferenceService/Predict", None, None)
        call = predict(request(2).SerializeToString(), timeout=DEADLINE_S)
        await pushes.wait(1)
        call.cancel()
        await cancels.wait(1)
    front_end.complete(Outcome.RESULT)
    assert front_end.partition.books()["ended"][Outcome.CANCELLED] == 2
    assert front_end.partition.free_slots == 16


async def test_stream_reads_no_further_than_it_may(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in flight of five sent; the next one is read when an answer has been written."""
    pushes = Calls(monkeypatch, front_end.partition, "push")
    async with serving(InferenceService(front_end.desk, 2)) as channel:
        call = open_stream(channel)
        for sequence in range(5):
            await call.write(streamed(sequence))
        await call.done_writing()
        await pushes.wait(1)
        for sequence in range(5):
            if sequence < 4:
                await pushes.wait(1)
            assert front_end.partition.books()["admitted"] == min(5, sequence + 2)
            front_end.complete(Outcome.RESULT, count=1)
            assert (await call.read()).sequence == sequence
        assert await call.code() is grpc.StatusCode.OK
