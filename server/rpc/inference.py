"""InferenceService: unary calls and RPC streams, from bytes to bytes.

The path of a request in this process: parse → check → admit → copy rows into slots → push; then, from
the completion gate's callback: encode → free the slots → answer. Nothing awaits between the stamp of a
key and its push, so the keys of a lane only grow.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from scheduler import _ring
from scheduler.entrance import Entrance
from scheduler.errors import (
    DeadlineMissed,
    InvalidRequest,
    ModelFailed,
    RequestCancelled,
    RequestError,
    Unavailable,
)
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import ClassLimits
from server.admission import DRAIN_RETRY_S, ENGINE_RETRY_S, Admission
from server.models import ModelTable
from server.offenders import Offenders
from server.rpc.request import CheckedRequest, check, parse
from server.rpc.response import ResponsePlan, stream_response
from server.status import abort, to_status
from tickring.v1 import inference_pb2

SERVICE = "tickring.v1.InferenceService"
PRIORITY_METADATA = "tickring-priority"
# Different (model, rows, outputs) whose response layout is kept ready.
PLANS_KEPT = 512

# grpc-stubs does not know it.
EOF: Final[object] = getattr(grpc.aio, "EOF")  # noqa: B009

Context = grpc.aio.ServicerContext[bytes, bytes]
Answer = Callable[["Ticket", "bytes | RequestError"], None]


class Ticket:
    """A request between its push and its answer. `answer` is called exactly once, from the event loop."""

    __slots__ = ("_answer", "_desk", "_plan", "arrived_ns", "request", "submission")

    def __init__(
        self, desk: "Desk", request: CheckedRequest, plan: ResponsePlan, arrived_ns: int, answer: Answer
    ) -> None:
        self._desk = desk
        self._plan = plan
        self._answer = answer
        self.request = request
        self.arrived_ns = arrived_ns
        self.submission: Submission | None = None

    def ended(self, submission: Submission) -> None:
        """The rows are back: encodes what is in them, then frees their slots."""
        partition = self._desk.partition
        result: bytes | RequestError
        if submission.outcome is Outcome.RESULT:
            now_ns = _ring.now_ns()
            result = self._plan.encode(
                partition, submission, self.request.request_id, self.arrived_ns, now_ns
            )
            self._desk.admission.delivered(now_ns - submission.compute_end_ns, now_ns)
        else:
            result = self._error(submission)
            if submission.outcome in (Outcome.ERROR, Outcome.NON_FINITE):
                self._desk.note_failure(self.request, submission)
        self.submission = None
        partition.release(submission)
        self._answer(self, result)

    def cancel(self) -> None:
        """The caller left. The rows still come back, unserved if the engine has not taken them."""
        if self.submission is not None:
            self._desk.entrance.cancel(self.submission)

    def _error(self, submission: Submission) -> RequestError:
        model = self.request.model.signature
        match submission.outcome:
            case Outcome.EXPIRED:
                waited_ms = submission.queue_wait_ns / 1e6
                return DeadlineMissed(
                    f"after {waited_ms:.1f} ms in the queue the deadline could not be met any more",
                    reason="EXPIRED_IN_QUEUE",
                )
            case Outcome.CANCELLED:
                return RequestCancelled("the caller cancelled the request")
            case Outcome.LOST:
                return Unavailable(
                    "the engine was lost while it held this request",
                    reason="ENGINE_LOST",
                    retry_after_s=ENGINE_RETRY_S,
                )
            case Outcome.NON_FINITE:
                return ModelFailed(
                    f"{model.name} version {model.version} answered NaN or Inf for this request",
                    reason="NON_FINITE_OUTPUT",
                )
            case _:
                return ModelFailed(
                    f"{model.name} version {model.version} failed on this request; "
                    f"the server's log has the cause under batch {submission.batch}",
                    reason="MODEL_ERROR",
                )


class Desk:
    """Takes checked bytes in and gives tickets out: what unary calls and RPC streams share."""

    def __init__(
        self,
        partition: Partition,
        entrance: Entrance,
        admission: Admission,
        models: ModelTable,
        limits: tuple[ClassLimits, ...],
    ) -> None:
        self.partition = partition
        self.entrance = entrance
        self.admission = admission
        self._models = models
        self._limits = limits
        self._offenders = Offenders()
        self._plan = lru_cache(maxsize=PLANS_KEPT)(ResponsePlan)

    def change(self, limits: tuple[ClassLimits, ...]) -> None:
        """Uses other class limits from now on; what has been let in keeps its key and its deadline."""
        self._limits = limits
        self.entrance.change(limits)
        self.admission.change(limits)

    def note_failure(self, request: CheckedRequest, submission: Submission) -> None:
        """Remembers the inputs of a request that the model failed on. Before its slots are released."""
        inputs = [self.partition.input(submission, p.offset, p.item_bytes) for p in request.payloads]
        self._offenders.failed(request.model.index, inputs, _ring.now_ns())

    def submit(
        self,
        message: inference_pb2.PredictRequest,
        arrived_ns: int,
        expires_ns: int | None,
        metadata_priority: str | None,
        answer: Answer,
    ) -> Ticket:
        """Admits a request and hands it to an engine.

        Args:
            expires_ns: the instant of the RPC's own deadline; None where it has none.

        Raises:
            RequestError: refused; nothing was taken and `answer` will not be called.
        """
        self.admission.check_serving()
        request = check(message, self._models, metadata_priority)
        class_index = request.priority.index
        limits = self._limits[class_index]
        deadline_ns = self._deadline_ns(request, arrived_ns, expires_ns, limits)
        model = request.model.index
        now_ns = _ring.now_ns()
        self._offenders.check(model, [payload.data for payload in request.payloads], now_ns)
        engine = self.admission.check(model, class_index, request.rows, deadline_ns, now_ns)

        partition = self.partition
        plan = self._plan(request.model.signature, request.rows, request.outputs)
        ticket = Ticket(self, request, plan, arrived_ns, answer)
        submission = partition.reserve(request.rows, model, class_index, ticket.ended)
        ticket.submission = submission
        for payload in request.payloads:
            partition.write_input(submission, payload.offset, payload.item_bytes, payload.data)
        self.entrance.enter(
            submission,
            engine=engine,
            now_ns=_ring.now_ns(),
            arrived_ns=arrived_ns,
            deadline_ns=deadline_ns,
            exclusive=request.exclusive,
        )
        return ticket

    @staticmethod
    def _deadline_ns(
        request: CheckedRequest, arrived_ns: int, expires_ns: int | None, limits: ClassLimits
    ) -> int:
        timeout_ns = request.timeout_ns
        if timeout_ns is None and expires_ns is None:
            return arrived_ns + limits.default_timeout_ns
        own_ns = _ring.NO_DEADLINE if timeout_ns is None else arrived_ns + timeout_ns
        rpc_ns = _ring.NO_DEADLINE if expires_ns is None else expires_ns
        # A Duration reaches further than the arena's 64 bits of nanoseconds.
        return min(own_ns, rpc_ns, _ring.NO_DEADLINE)


class InferenceService:
    """The handlers of tickring.v1.InferenceService, on raw bytes."""

    def __init__(self, desk: Desk, max_in_flight_per_stream: int) -> None:
        self._desk = desk
        self._max_in_flight = max_in_flight_per_stream
        self._streams: set[_RpcStream] = set()
        self._draining = False

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        # No (de)serialisers: gRPC would answer bytes that do not parse with INTERNAL.
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Predict": grpc.unary_unary_rpc_method_handler(self.predict),
                "PredictStream": grpc.stream_stream_rpc_method_handler(self.predict_stream),
            },
        )

    async def predict(self, raw: bytes, context: Context) -> bytes:
        """One unary call. Cancelling it cancels what it has queued."""
        arrived_ns = _ring.now_ns()
        answered: asyncio.Future[bytes | RequestError] = asyncio.get_running_loop().create_future()

        def answer(_ticket: Ticket, result: bytes | RequestError) -> None:
            if not answered.done():  # done: the caller left, nobody waits
                answered.set_result(result)

        try:
            ticket = self._desk.submit(
                parse(raw), arrived_ns, _expires_ns(context, arrived_ns), _metadata_priority(context), answer
            )
        except RequestError as error:
            await abort(context, error)
        try:
            result = await answered
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        if isinstance(result, RequestError):
            await abort(context, result)
        return result

    async def predict_stream(self, _messages: object, context: Context) -> None:
        """One RPC stream."""
        if self._draining:  # it had been accepted before the port was closed
            await abort(context, _draining())
        stream = _RpcStream(self._desk, context, self._max_in_flight)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def drain(self) -> None:
        """Makes every RPC stream take nothing more, finish what it has, and end UNAVAILABLE."""
        self._draining = True
        for stream in self._streams:
            stream.drain()


class _RpcStream:
    """One bidirectional RPC stream: a task that reads, a task that writes, and the requests between.

    The reader stops while `max_in_flight` requests are outstanding or unwritten, and HTTP/2 flow
    control then stops the client: that is the only backpressure a fast sender feels.
    """

    def __init__(self, desk: Desk, context: Context, max_in_flight: int) -> None:
        self._desk = desk
        self._context = context
        self._max_in_flight = max_in_flight
        self._priority = _metadata_priority(context)
        self._expires_ns = _expires_ns(context, _ring.now_ns())
        self._tickets: set[Ticket] = set()
        self._outbox: deque[bytes] = deque()
        self._writing = False
        self._posted = asyncio.Event()  # the writer waits for something to write
        self._moved = asyncio.Event()  # everybody else waits for something to be written
        self._reader: asyncio.Task[None] | None = None
        self._draining = False

    async def run(self) -> None:
        """Serves until the client half-closes, leaves, or the server drains."""
        writer = asyncio.create_task(self._write_all())
        writer.add_done_callback(lambda _: self._moved.set())
        self._reader = asyncio.create_task(self._read_all())
        try:
            # The writer ends before the reader only when the connection is gone.
            await asyncio.wait((self._reader, writer), return_when=asyncio.FIRST_COMPLETED)
            while self._occupied() and not writer.done():
                self._moved.clear()
                await self._moved.wait()
        finally:
            for ticket in list(self._tickets):  # what is held at the entrance ends within the call
                ticket.cancel()
            for task in (self._reader, writer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if not self._reader.cancelled():
            self._reader.result()
        if self._draining:
            await abort(self._context, _draining())

    def drain(self) -> None:
        """See `InferenceService.drain`. A client that has half-closed gets all its answers, and OK."""
        if self._reader is not None and self._reader.cancel():
            self._draining = True

    def _occupied(self) -> int:
        return len(self._tickets) + len(self._outbox) + self._writing

    async def _read_all(self) -> None:
        read = self._context.read
        while True:
            raw = await read()
            if raw is EOF:
                return
            self._accept(raw)
            while self._occupied() >= self._max_in_flight:
                self._moved.clear()
                await self._moved.wait()

    def _accept(self, raw: bytes) -> None:
        arrived_ns = _ring.now_ns()
        sequence = 0
        try:
            try:
                message = inference_pb2.PredictStreamRequest.FromString(raw)
            except DecodeError as error:
                raise InvalidRequest("message", f"{len(raw)} bytes are not a PredictStreamRequest") from error
            sequence = message.sequence
            if not message.HasField("request"):
                raise InvalidRequest("request", "missing")
            # No answer can come before this returns: completions are delivered by the event loop.
            self._tickets.add(
                self._desk.submit(
                    message.request,
                    arrived_ns,
                    self._expires_ns,
                    self._priority,
                    partial(self._answer, sequence),
                )
            )
        except RequestError as error:
            self._post(_stream_error(sequence, error))

    def _answer(self, sequence: int, ticket: Ticket, result: bytes | RequestError) -> None:
        self._tickets.discard(ticket)
        if isinstance(result, bytes):
            self._post(stream_response(sequence, result))
        else:
            self._post(_stream_error(sequence, result))

    def _post(self, response: bytes) -> None:
        self._outbox.append(response)
        self._posted.set()

    async def _write_all(self) -> None:
        write = self._context.write
        outbox = self._outbox
        while True:
            while outbox:
                self._writing = True
                await write(outbox.popleft())
                self._writing = False
                self._moved.set()
            self._posted.clear()
            await self._posted.wait()


def _draining() -> Unavailable:
    return Unavailable("the server is draining", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)


def _stream_error(sequence: int, error: RequestError) -> bytes:
    return inference_pb2.PredictStreamResponse(sequence=sequence, error=to_status(error)).SerializeToString()


def _expires_ns(context: Context, now_ns: int) -> int | None:
    remaining_s = context.time_remaining()
    return None if remaining_s is None else now_ns + max(0, int(remaining_s * 1e9))


def _metadata_priority(context: Context) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == PRIORITY_METADATA:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return None
