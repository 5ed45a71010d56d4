"""What stands before every RPC, without gRPC: which handler it is given, and what is logged."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from server.auth import Tokens
from server.guard import Guard
from server.limits import CANCEL_BURST_S, Cancels

SERVICE = "tickring.v1.InferenceService"
GOOD = (("authorization", "Bearer good"),)


class Details(NamedTuple):
    """What gRPC says of an RPC before its handler runs."""

    method: str
    invocation_metadata: Any = ()


class Context:
    """A call as the handlers see it."""

    def __init__(self, metadata: Any = GOOD) -> None:
        self.metadata = metadata
        self.written: list[Any] = []
        self.began = asyncio.Event()
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> Any:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:10.0.0.1:5000"

    def time_remaining(self) -> None:
        return None

    async def write(self, response: Any) -> None:
        self.written.append(response)
        self.began.set()

    async def abort(self, code: grpc.StatusCode, *_: Any) -> None:
        self.code = code
        raise grpc.aio.AbortError


async def call(request: Any, _context: Any) -> Any:
    return request * 2


async def stream(_requests: Any, context: Any) -> None:
    await context.write("first")
    await asyncio.Event().wait()


async def yields(_requests: Any, _context: Any) -> AsyncIterator[str]:
    for word in ("a", "b"):
        yield word


async def hangs(_request: Any, _context: Any) -> None:
    await asyncio.Event().wait()


async def check(request: Any, context: Any) -> Any:
    context.written.append(request.service)


async def talk(requests: Any, context: Any) -> None:
    async for request in requests:
        await context.write(request.service)


async def broken(_request: Any, _context: Any) -> Any:
    return 1 // 0


parse = health_pb2.HealthCheckRequest.FromString
HANDLERS = {
    "Check": grpc.unary_unary_rpc_method_handler(check, parse),
    "Talk": grpc.stream_stream_rpc_method_handler(talk, parse),
    "Broken": grpc.unary_unary_rpc_method_handler(broken),
    "Predict": grpc.unary_unary_rpc_method_handler(call, str, bytes),
    "PredictStream": grpc.stream_stream_rpc_method_handler(stream),
    "Yields": grpc.unary_stream_rpc_method_handler(yields),
    "Hangs": grpc.unary_unary_rpc_method_handler(hangs),
}


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """One, called "good"."""
    path = tmp_path / "tokens.toml"
    path.write_text(f'[tokens.a]\nroles = ["predict"]\nsha256 = "{hashlib.sha256(b"good").hexdigest()}"\n')
    return Tokens(path)


def guarding(tokens: Tokens | None, per_s: float = 1.0) -> Guard:
    """Before these handlers."""
    found = Guard(tokens, Cancels(per_s))
    found.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, HANDLERS),))
    return found


def handler(guard: Guard, method: str, metadata: Any = GOOD) -> Any:
    """What gRPC is given for this call."""
    return guard.service(Details(f"/{SERVICE}/{method}", metadata))  # type: ignore[arg-type]


@pytest.mark.parametrize("with_tokens", [True, False])
async def test_call_reaches_its_service(tokens: Tokens, with_tokens: bool) -> None:
    """With the service's own coding; a method that nobody has stays unknown."""
    guard = guarding(tokens if with_tokens else None)
    found = handler(guard, "Predict")
    assert (found.request_deserializer(b"12"), found.response_serializer) == ("b'12'", bytes)
    assert not found.request_streaming
    assert await found.unary_unary(21, Context()) == 42
    assert handler(guard, "Predict") is found
    assert handler(guard, "None") is None


@pytest.mark.parametrize("method", ["Check", "Talk"])
async def test_bytes_that_are_no_message_are_refused(method: str) -> None:
    """As INVALID_ARGUMENT, and the service never sees them; in a stream, not what comes after them either."""
    context = Context()
    found = handler(guarding(None), method)
    parsed = [found.request_deserializer(raw) for raw in (b"\n\x01a", b"\xff", b"\n\x01b")]

    async def messages() -> AsyncIterator[Any]:
        for message in parsed:
            yield message

    with pytest.raises(grpc.aio.AbortError):
        await (
            found.stream_stream(messages(), context)
            if method == "Talk"
            else found.unary_unary(parsed[1], context)
        )
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert context.written == (["a"] if method == "Talk" else [])


async def test_bug_in_a_service_is_logged() -> None:
    """gRPC tells the caller UNKNOWN, and nobody else anything."""
    with capture_logs() as logged, pytest.raises(ZeroDivisionError):
        await handler(guarding(None), "Broken").unary_unary(None, Context())
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("an RPC has failed by a bug", "error")
    ]
    assert logged[0]["method"] == f"/{SERVICE}/Broken"


async def test_service_that_yields_its_answers() -> None:
    """Is the same to the guard as one that writes them."""
    context = Context()
    found = handler(guarding(None), "Yields")
    assert found.response_streaming
    await found.unary_stream(None, context)
    assert context.written == ["a", "b"]


async def test_call_without_a_token_is_refused_before_it_is_read(tokens: Tokens) -> None:
    """What gRPC is given instead reads nothing, whatever kind of RPC it is for."""
    guard = guarding(tokens)
    for method in ("Predict", "PredictStream"):
        found, context = handler(guard, method, ()), Context(())
        assert found.request_streaming
        assert found.response_streaming
        with pytest.raises(grpc.aio.AbortError):
            await found.stream_stream(None, context)
        assert context.code is grpc.StatusCode.UNAUTHENTICATED


async def test_refusals_are_logged_now_and_then(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a reason, and ten seconds later the next, with the number of those between."""
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    guarded = guarding(tokens)

    async def refused(metadata: Any) -> None:
        with pytest.raises(grpc.aio.AbortError):
            await handler(guarded, "Predict", metadata).stream_stream(None, Context(metadata))

    with capture_logs() as logs:
        for _ in range(5):
            await refused(())
        await refused((("authorization", "Bearer bad"),))
        now_s[0] += 10.0
        await refused(())
    assert [(line["reason"], line["more"]) for line in logs] == [
        ("TOKEN_MISSING", 0),
        ("TOKEN_UNKNOWN", 0),
        ("TOKEN_MISSING", 4),
    ]
    assert "bad" not in str(logs)


async def test_stream_ends_with_its_token(tokens: Tokens, tmp_path: Path) -> None:
    """At the next look, and only then; the service is cancelled, as if the caller had left."""
    guard = guarding(tokens)
    context = Context()
    running = asyncio.create_task(handler(guard, "PredictStream").stream_stream(None, context))
    await context.began.wait()
    guard.recheck()
    (tmp_path / "tokens.toml").write_text(f'[tokens.b]\nroles = ["predict"]\nsha256 = "{"0" * 64}"\n')
    assert tokens.refresh()
    assert not running.done()
    guard.recheck()
    with pytest.raises(grpc.aio.AbortError):
        await running
    assert context.code is grpc.StatusCode.UNAUTHENTICATED
    guard.recheck()


async def test_caller_that_leaves_ends_its_stream(tokens: Tokens) -> None:
    """Nothing is said to who is gone, and nothing of it is kept."""
    guard = guarding(tokens)
    context = Context()
    running = asyncio.create_task(handler(guard, "PredictStream").stream_stream(None, context))
    await context.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert context.code is None
    assert not guard._streams


async def test_peer_that_cancels_too_much_is_turned_away() -> None:
    """RESOURCE_EXHAUSTED, without a word to the service."""
    guard = guarding(None, per_s=1.0)
    found = handler(guard, "Hangs")
    for _ in range(round(CANCEL_BURST_S) + 1):
        running = asyncio.create_task(found.unary_unary(None, Context()))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await handler(guard, "Predict").unary_unary(1, context)
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
