"""Stands before every RPC of a port: asks for its token, and turns away who only cancels.

gRPC asks a generic handler for the handler of each RPC, with its method and metadata, before it reads the
first message. So one place covers every service, the services know nothing of tokens, and a call without
one costs the server no message. (An interceptor would do the same for tens of microseconds a call.)
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from scheduler.errors import InvalidRequest, RequestError
from server.auth import Caller, Tokens, allowed
from server.limits import Cancels
from server.status import abort
from server.telemetry.trace_context import origin_of

# Of refused calls one line is logged so often, for each reason, with the number of the others.
LOG_EVERY_S = 10.0

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

log = structlog.get_logger()


class Guard(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # no generic class when it runs
    """One for a port. Takes the place of the server where handlers are added, and is then added to it.

    Belongs to the event loop.

    Attributes:
        on_refused: is told why, for each RPC that is refused here.
    """

    def __init__(self, tokens: Tokens | None, cancels: Cancels) -> None:
        """`tokens` None: everybody may call everything."""
        self._tokens = tokens
        self._cancels = cancels
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._methods: dict[str, Any] = {}  # as long as the lists of the services behind
        self._streams: set[_Stream] = set()
        self._logged: dict[str, tuple[float, int]] = {}  # reason: when last, and how many since
        self.on_refused: Callable[[RequestError], None] = lambda error: None

    def add_generic_rpc_handlers(self, handlers: "Iterable[grpc.GenericRpcHandler[Any, Any]]") -> None:
        """As of a server."""
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service: str, methods: object) -> None:
        """As of a server of grpc.aio, which leaves them out as well: generated code adds both kinds."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of this RPC: the service's own, one that refuses, or None where there is none."""
        method = handler_call_details.method
        handler = self._methods.get(method) or self._find(method, handler_call_details)
        if handler is not None and self._tokens is not None:
            try:
                self._tokens.check(method, handler_call_details.invocation_metadata)
            except RequestError as error:
                return self._refusal(method, error)
        return handler

    def recheck(self) -> None:
        """Ends the RPC streams whose token has been revoked, lost its role, or expired."""
        if self._tokens is None:
            return
        for stream in list(self._streams):
            try:
                self._tokens.recheck(stream.method, stream.caller)
            except RequestError as error:
                stream.end(error)

    def _find(self, method: str, details: grpc.HandlerCallDetails) -> Any:
        for handler in self._handlers:
            found: Any = handler.service(details)
            if found is not None:
                self._methods[method] = guarded = self._guarded(method, found)
                return guarded
        return None

    def _guarded(self, method: str, handler: Any) -> Any:
        if handler.request_streaming:
            make = grpc.stream_stream_rpc_method_handler
            inner = handler.stream_stream if handler.response_streaming else handler.stream_unary
            if not handler.response_streaming:
                make = grpc.stream_unary_rpc_method_handler
        else:
            make = grpc.unary_stream_rpc_method_handler
            inner = handler.unary_stream if handler.response_streaming else handler.unary_unary
            if not handler.response_streaming:
                make = grpc.unary_unary_rpc_method_handler
        behaviour, parse = _as_coroutine(inner), handler.request_deserializer
        if parse is not None:
            parse = _parse_or_error(method, parse)
            behaviour = (_refuse_in_stream if handler.request_streaming else _refuse_unparsed)(behaviour)
        behaviour = self._counted(method, behaviour)
        if self._tokens is not None and allowed(method) is not None and handler.response_streaming:
            behaviour = self._watched(method, behaviour)
        return make(behaviour, parse, handler.response_serializer)

    def _counted(self, method: str, inner: Behaviour) -> Behaviour:
        cancels = self._cancels

        async def behaviour(request: Any, context: Context) -> Any:
            if cancels.refusing:
                try:
                    cancels.check(context.peer(), time.monotonic())
                except RequestError as error:
                    self.on_refused(error)
                    await abort(context, error)
            try:
                return await inner(request, context)
            except asyncio.CancelledError:
                if cancels.note(context.peer(), context.time_remaining(), time.monotonic()):
                    log.warning(
                        "refusing a peer that cancels too much", peer=context.peer(), **_trace(context)
                    )
                raise
            except grpc.aio.BaseError:  # an abort, or a connection that is gone
                raise
            except Exception:
                # gRPC says UNKNOWN to the caller, and nothing that anybody would see here.
                log.exception("an RPC has failed by a bug", method=method, **_trace(context))
                raise

        return behaviour

    def _watched(self, method: str, inner: Behaviour) -> Behaviour:
        async def behaviour(request: Any, context: Context) -> None:
            assert self._tokens is not None
            try:
                caller = self._tokens.caller(context.invocation_metadata() or ())
            except RequestError as error:  # it was good a moment ago
                await self._refuse(method, error, context)
            stream = _Stream(method, caller, asyncio.ensure_future(inner(request, context)))
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)
            if stream.error is not None:
                await self._refuse(method, stream.error, context)

        return behaviour

    def _refusal(self, method: str, error: RequestError) -> Any:
        # Of this kind for every method: it may answer before it has read anything.
        async def behaviour(_messages: Any, context: Context) -> None:
            await self._refuse(method, error, context)

        return grpc.stream_stream_rpc_method_handler(behaviour)

    async def _refuse(self, method: str, error: RequestError, context: Context) -> NoReturn:
        self.on_refused(error)
        reason, now_s = str(getattr(error, "reason", "")), time.monotonic()
        last_s, more = self._logged.get(reason, (-LOG_EVERY_S, 0))
        if now_s - last_s >= LOG_EVERY_S:
            log.warning(
                "call refused",
                reason=reason,
                why=str(error),
                method=method,
                peer=context.peer(),
                more=more,
                **_trace(context),
            )
            last_s, more = now_s, -1
        self._logged[reason] = last_s, more + 1
        await abort(context, error)


def _trace(context: Context) -> dict[str, str]:
    metadata: Any = context.invocation_metadata() or ()
    return origin_of("", metadata).fields()


class _Stream:
    """An RPC stream that ends when its token does."""

    def __init__(self, method: str, caller: Caller, task: "asyncio.Future[Any]") -> None:
        self.method = method
        self.caller = caller
        self.error: RequestError | None = None
        self._task = task

    async def run(self) -> None:
        """Returns once the service is done with the stream, or `end` was called."""
        try:
            await self._task
        except asyncio.CancelledError:
            if self.error is None:  # the caller left
                raise

    def end(self, error: RequestError) -> None:
        """What is in flight is dropped: nothing more goes to this caller."""
        if self.error is None and self._task.cancel():
            self.error = error


def _as_coroutine(inner: Any) -> Behaviour:
    """The same for services that yield their answers."""
    if not inspect.isasyncgenfunction(inner):
        assert inspect.iscoroutinefunction(inner), inner
        coroutine: Behaviour = inner
        return coroutine

    async def behaviour(request: Any, context: Context) -> None:
        async for response in inner(request, context):
            await context.write(response)

    return behaviour


def _parse_or_error(method: str, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns the error of bytes that are no message: raised, it would be a bug to gRPC, and UNKNOWN."""

    def parse_or_error(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return InvalidRequest("request", f"{len(raw)} bytes are no message of {method}")

    return parse_or_error


def _refuse_unparsed(inner: Behaviour) -> Behaviour:
    async def behaviour(request: Any, context: Context) -> Any:
        if isinstance(request, InvalidRequest):
            await abort(context, request)
        return await inner(request, context)

    return behaviour


def _refuse_in_stream(inner: Behaviour) -> Behaviour:
    """The RPC ends at the first message that is none."""

    async def parsed(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for message in messages:
            if isinstance(message, InvalidRequest):
                await abort(context, message)
            yield message

    async def behaviour(messages: Any, context: Context) -> Any:
        return await inner(parsed(messages, context), context)

    return behaviour
