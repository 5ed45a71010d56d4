"""RPCs that are refused at the door of a port: whoever counts is told of each."""

from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from scheduler.errors import Overloaded, RequestError
from server.auth import Tokens, Unauthenticated
from server.guard import Guard
from server.limits import CANCEL_BURST_S, Cancels


class Details(NamedTuple):
    """What gRPC says of an RPC before its handler runs."""

    method: str
    invocation_metadata: Any = ()


class Context:
    """A call as a handler sees it."""

    def invocation_metadata(self) -> Any:
        return ()

    def peer(self) -> str:
        return "ipv4:10.0.0.1:5000"

    def time_remaining(self) -> None:
        return None

    async def abort(self, *_: Any) -> None:
        raise grpc.aio.AbortError


async def answer(request: Any, _context: Any) -> Any:
    return request


def guarding(tokens: Tokens | None, cancels: Cancels) -> tuple[Guard, list[RequestError]]:
    """One with a method `a/B`, and what it tells."""
    guard, told = Guard(tokens, cancels), list[RequestError]()
    guard.on_refused = told.append
    handlers = {"B": grpc.unary_unary_rpc_method_handler(answer)}
    guard.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", handlers),))
    return guard, told


def handler(guard: Guard) -> Any:
    return guard.service(Details("/a/B"))  # type: ignore[arg-type]


async def test_call_without_a_token_is_told(tmp_path: Path) -> None:
    """Each of them, though not each is logged."""
    file = tmp_path / "tokens.toml"
    file.write_text(f'[tokens.a]\nroles = ["predict"]\nsha256 = "{"0" * 64}"\n')
    guard, told = guarding(Tokens(file), Cancels(1.0))
    for _ in range(3):
        with pytest.raises(grpc.aio.AbortError):
            await handler(guard).stream_stream(None, Context())
    assert [type(error) for error in told] == [Unauthenticated] * 3


async def test_peer_that_cancels_too_much_is_told() -> None:
    """A call that is answered is not."""
    cancels = Cancels(1.0)
    guard, told = guarding(None, cancels)
    assert await handler(guard).unary_unary(1, Context()) == 1
    now_s = 1e9
    while not cancels.note(Context().peer(), None, now_s):
        assert cancels.per_s * CANCEL_BURST_S < 1e3
    with pytest.raises(grpc.aio.AbortError):
        await handler(guard).unary_unary(1, Context())
    assert [type(error) for error in told] == [Overloaded]
