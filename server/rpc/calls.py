"""Unary calls and RPC streams of predictions, from bytes to bytes, in any protocol.

What differs between protocols is a `Dialect`; reading, writing, backpressure, cancelling and draining are
the same for all and happen here.
"""

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import Any, Final, Generic

import grpc

from scheduler import _ring
from scheduler.errors import RequestError, Unavailable
from server.admission import DRAIN_RETRY_S
from server.rpc.desk import Desk, Ticket
from server.rpc.dialect import Dialect, Mark, Message
from server.status import abort
from server.telemetry.trace_context import TRACEPARENT, Origin, origin_of

PRIORITY_METADATA = "tickring-priority"

# grpc-stubs does not know it.
EOF: Final[object] = getattr(grpc.aio, "EOF")  # noqa: B009

Context = grpc.aio.ServicerContext[bytes, bytes]


class Calls(Generic[Message, Mark]):
    """The calls of one service."""

    def __init__(self, desk: Desk, dialect: Dialect[Message, Mark], max_in_flight_per_stream: int) -> None:
        self._desk = desk
        self._dialect = dialect
        self._plain = Origin(dialect.unary_method)
        self.max_in_flight = max_in_flight_per_stream  # of RPC streams that begin from now on
        self._streams: set[_RpcStream[Message, Mark]] = set()
        self._draining = False

    async def unary(self, raw: bytes, context: Context) -> bytes:
        """One unary call. Cancelling it cancels what it has queued."""
        arrived_ns = _ring.now_ns()
        answered: asyncio.Future[bytes | RequestError] = asyncio.get_running_loop().create_future()

        def answer(_ticket: Ticket, result: bytes | RequestError) -> None:
            if not answered.done():  # done: the caller left, nobody waits
                answered.set_result(result)

        priority, origin = _read_metadata(context, self._plain)
        try:
            ticket = self._desk.submit(
                self._dialect,
                self._parse(raw, origin, arrived_ns),
                arrived_ns,
                _expires_ns(context, arrived_ns),
                priority,
                answer,
                origin,
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

    async def stream(self, _messages: object, context: Context) -> None:
        """One RPC stream."""
        if self._draining:  # it had been accepted before the port was closed
            await abort(context, _draining())
        stream = _RpcStream(self._desk, self._dialect, context, self.max_in_flight)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    def _parse(self, raw: bytes, origin: Origin, arrived_ns: int) -> Message:
        try:
            return self._dialect.parse(raw)
        except RequestError as error:
            self._desk.refused(origin, None, arrived_ns, error)
            raise

    def drain(self) -> None:
        """Makes every RPC stream take nothing more, finish what it has, and end UNAVAILABLE."""
        self._draining = True
        for stream in self._streams:
            stream.drain()


class _RpcStream(Generic[Message, Mark]):
    """One bidirectional RPC stream: a task that reads, a task that writes, and the requests between.

    The reader stops while `max_in_flight` requests are outstanding or unwritten, and HTTP/2 flow
    control then stops the client: that is the only backpressure a fast sender feels.
    """

    def __init__(
        self, desk: Desk, dialect: Dialect[Message, Mark], context: Context, max_in_flight: int
    ) -> None:
        self._desk = desk
        self._dialect = dialect
        self._context = context
        self._max_in_flight = max_in_flight
        self._priority, self._origin = _read_metadata(context, Origin(dialect.stream_method))
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
        """See `Calls.drain`. A client that has half-closed gets all its answers, and OK."""
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
        mark, message = self._dialect.unwrap(raw)
        try:
            if isinstance(message, RequestError):
                self._desk.refused(self._origin, None, arrived_ns, message)
                raise message
            # No answer can come before this returns: completions are delivered by the event loop.
            self._tickets.add(
                self._desk.submit(
                    self._dialect,
                    message,
                    arrived_ns,
                    self._expires_ns,
                    self._priority,
                    partial(self._answer, mark),
                    self._origin,
                )
            )
        except RequestError as error:
            self._post(self._dialect.stream_error(mark, error))

    def _answer(self, mark: Mark, ticket: Ticket, result: bytes | RequestError) -> None:
        self._tickets.discard(ticket)
        if isinstance(result, bytes):
            self._post(self._dialect.stream_response(mark, result))
        else:
            self._post(self._dialect.stream_error(mark, result))

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


def _expires_ns(context: Context, now_ns: int) -> int | None:
    remaining_s = context.time_remaining()
    return None if remaining_s is None else now_ns + max(0, int(remaining_s * 1e9))


def _read_metadata(context: Context, plain: Origin) -> tuple[str | None, Origin]:
    """The priority that the metadata names, and where the call comes from: `plain`, unless it has a trace."""
    metadata: Any = context.invocation_metadata() or ()
    priority, origin = None, plain
    for name, value in metadata:
        if name == PRIORITY_METADATA:
            if priority is None:
                priority = value if isinstance(value, str) else value.decode(errors="replace")
        elif name == TRACEPARENT and origin is plain:
            origin = origin_of(plain.method, metadata)
    return priority, origin
