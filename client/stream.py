"""Many concurrent requests over one PredictStream RPC.

Everything here runs on one event loop, so whatever happens between two awaits is atomic. A request is
known to its `RpcStream` by sequence. It ends exactly once: whoever ends it (the reader with its answer,
the RPC's end, its timer) finds its future not done, and all of them run on that one loop.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import grpc
import grpc.aio

from client.errors import (
    Cancelled,
    DeadlineExceeded,
    PredictionError,
    Unavailable,
    from_rpc_error,
    from_status,
)
from tickring.v1 import inference_pb2

# Requests sent or waiting to be sent; the next caller waits for a place.
MAX_IN_FLIGHT = 1024
# The server says DEADLINE_EXCEEDED at the deadline and knows why; this is how long its word may travel
# before the client says so itself.
LOCAL_GRACE_S = 0.05
# Ends of an RPC stream that say nothing of the requests on it, so that they are safe to send again.
# CANCELLED: no caller cancelled, the other side dropped the RPC. INTERNAL: the server says that of single
# requests only; here it is what grpc.aio makes up, in place of the status, when the RPC ends during a write.
_DROPPED = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})

StreamCall: TypeAlias = grpc.aio.StreamStreamCall[
    inference_pb2.PredictStreamRequest, inference_pb2.PredictStreamResponse
]
Answer: TypeAlias = asyncio.Future[inference_pb2.PredictResponse]


class Multiplexer:
    """Sends each request on the current RPC stream, opening one where there is none.

    `open_call` starts a PredictStream RPC; it runs on the event loop and does not block.
    """

    def __init__(self, open_call: Callable[[], StreamCall], max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._open_call = open_call
        self._max_in_flight = max_in_flight
        self._places = asyncio.Semaphore(max_in_flight)
        self._sequences = itertools.count(1)
        self._stream: RpcStream | None = None

    async def predict(
        self, message: inference_pb2.PredictStreamRequest, deadline: float | None
    ) -> inference_pb2.PredictResponse:
        """The answer to `message`, whose sequence and timeout are set here.

        `deadline` is in the loop's time, seconds; None waits as long as the RPC stream lives. Raises the
        `PredictionError` that the server answered with, that the RPC stream ended with, or
        `DeadlineExceeded`. When the awaiting task is cancelled, the answer is dropped as it comes.
        """
        await self._take_place(deadline)
        try:
            return await self._exchange(message, deadline)
        finally:
            self._places.release()

    async def close(self) -> None:
        """Ends the RPC stream; what is outstanding fails with `Cancelled`."""
        if self._stream is not None:
            await self._stream.close()

    async def _take_place(self, deadline: float | None) -> None:
        if not self._places.locked():
            await self._places.acquire()  # does not suspend
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"all {self._max_in_flight} places in flight stayed taken"
            ) from None

    async def _exchange(
        self, message: inference_pb2.PredictStreamRequest, deadline: float | None
    ) -> inference_pb2.PredictResponse:
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        remaining_s = 0.0
        if deadline is not None:
            remaining_s = deadline - loop.time()
            set_timeout(message.request, remaining_s)
        message.sequence = next(self._sequences)
        stream = self._current_stream()
        stream.send(message, answer)
        timer = None
        if deadline is not None:
            timer = loop.call_at(deadline + LOCAL_GRACE_S, _expire, answer, remaining_s)
        try:
            return await answer
        finally:
            if timer is not None:
                timer.cancel()
            stream.forget(message.sequence)

    def _current_stream(self) -> "RpcStream":
        if self._stream is None or self._stream.ended:
            self._stream = RpcStream(self._open_call())
        return self._stream


class RpcStream:
    """One PredictStream RPC from its opening to its end: a reader task and a writer task.

    The reader alone decides that the RPC has ended, and fails what is then outstanding.
    """

    def __init__(self, call: StreamCall) -> None:
        self.ended = False
        self._call = call
        self._pending: dict[int, Answer] = {}
        # Ordered by sequence, but a cancelled request leaves from the middle.
        self._unsent: OrderedDict[int, inference_pb2.PredictStreamRequest] = OrderedDict()
        self._more_to_send = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())

    def send(self, message: inference_pb2.PredictStreamRequest, answer: Answer) -> None:
        """Queues `message`; `answer` gets its end unless `forget` comes first."""
        assert not self.ended
        self._pending[message.sequence] = answer
        self._unsent[message.sequence] = message
        self._more_to_send.set()

    def forget(self, sequence: int) -> None:
        """Nobody waits for `sequence` any more: it is not sent if it was not yet, its answer is dropped."""
        self._pending.pop(sequence, None)
        self._unsent.pop(sequence, None)

    async def close(self) -> None:
        """Cancels the RPC and returns when everything outstanding has been failed."""
        self._call.cancel()
        await self._reader

    async def _write(self) -> None:
        try:
            while True:
                while self._unsent:
                    _, message = self._unsent.popitem(last=False)
                    await self._call.write(message)
                self._more_to_send.clear()
                await self._more_to_send.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the RPC is over; the reader learns the same and tells the callers
        finally:
            # Without a writer no request would ever be answered: end the RPC, and the reader with it.
            self._call.cancel()

    async def _read(self) -> None:
        end: Callable[[], PredictionError] = partial(
            Unavailable, grpc.StatusCode.UNAVAILABLE, "the server ended the RPC stream without an answer"
        )
        try:
            async for answer in self._call:
                if answer is None:  # bytes that gRPC could not parse: whose answer they were, nobody knows
                    end = partial(PredictionError, grpc.StatusCode.INTERNAL, "malformed answer: no message")
                    self._call.cancel()
                    break
                self._deliver(answer)
        except grpc.aio.AioRpcError as error:
            end = partial(_stream_error, error)
        except asyncio.CancelledError:
            end = partial(Cancelled, grpc.StatusCode.CANCELLED, "this client is closed")
        finally:
            self._finish(end)

    def _deliver(self, answer: inference_pb2.PredictStreamResponse) -> None:
        future = self._pending.pop(answer.sequence, None)
        if future is None or future.done():
            return  # given up before it came
        if answer.HasField("response"):
            future.set_result(answer.response)
        elif answer.HasField("error"):
            future.set_exception(from_status(answer.error))
        else:
            future.set_exception(
                PredictionError(grpc.StatusCode.INTERNAL, "malformed answer: neither response nor error")
            )

    def _finish(self, end: Callable[[], PredictionError]) -> None:
        self.ended = True
        self._writer.cancel()
        self._unsent.clear()
        outstanding, self._pending = self._pending, {}
        for future in outstanding.values():
            if not future.done():
                future.set_exception(end())  # one each: a raised exception collects its own traceback


def set_timeout(request: inference_pb2.PredictRequest, timeout_s: float) -> None:
    """Sets the request's timeout; the wire wants a positive one, so the least is 1 ns."""
    seconds, nanos = divmod(max(1, int(timeout_s * 1e9)), 1_000_000_000)
    request.timeout.seconds = seconds
    request.timeout.nanos = nanos


def _expire(answer: Answer, timeout_s: float) -> None:
    if not answer.done():
        message = f"no answer within {timeout_s:.3f} s and {LOCAL_GRACE_S:g} s of grace"
        answer.set_exception(DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, message))


def _stream_error(error: grpc.aio.AioRpcError) -> PredictionError:
    if error.code() in _DROPPED:
        return Unavailable(grpc.StatusCode.UNAVAILABLE, f"the RPC stream broke: {error.details()}")
    return from_rpc_error(error)
