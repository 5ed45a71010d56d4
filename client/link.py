"""One connection to a server: what may go over it, when it opens, and how calls on it end."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc
import grpc.aio

from client.channel import Request, Response, TlsFiles, Unary, call_metadata, open_channel, stays_here
from client.errors import Cancelled, PredictionError, from_rpc_error

Rpcs = TypeVar("Rpcs")


class Link(Generic[Rpcs]):
    """Connects nothing and needs no event loop until `rpcs` are asked for; then it is that loop's."""

    def __init__(
        self,
        target: str,
        tls: TlsFiles | None,
        token: str | None,
        allow_clear_text: bool,
        rpcs: Callable[[grpc.aio.Channel], Rpcs],
    ) -> None:
        """`rpcs` makes those of a channel. Raises ValueError for a token that would go in clear text."""
        if token is not None and tls is None and not allow_clear_text and not stays_here(target):
            raise ValueError(f"the token would go to {target} in clear text: use TLS, or allow clear text")
        self.target = target
        self.metadata = call_metadata(token)
        self._tls = tls
        self._make_rpcs = rpcs
        self._open: tuple[grpc.aio.Channel, Rpcs] | None = None
        self._closed = False

    @property
    def rpcs(self) -> Rpcs:
        """Those of the channel. Raises `Cancelled` once it is closed, `OSError` for TLS files."""
        if self._closed:
            raise _closed_error()
        if self._open is None:
            channel = open_channel(self.target, self._tls)
            self._open = channel, self._make_rpcs(channel)
        return self._open[1]

    async def call(
        self, rpc: Unary[Request, Response], request: Request, timeout_s: float | None
    ) -> Response:
        """The answer. Raises `PredictionError`, which is `Cancelled` where `close` came first."""
        try:
            answer = await rpc(request, timeout=timeout_s, metadata=self.metadata)
            if answer is None:  # bytes that gRPC could not parse
                raise PredictionError(grpc.StatusCode.INTERNAL, "malformed answer: no message")
            return answer
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            # Closing the channel cancels its RPCs, which looks like a cancel of the task that awaits one.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closed_error() from None
            raise

    def refuse_calls(self) -> None:
        """Later calls fail with `Cancelled`; those outstanding may still end."""
        self._closed = True

    async def close(self) -> None:
        """Outstanding and later calls fail with `Cancelled`."""
        self._closed = True
        if self._open is not None:
            (channel, _), self._open = self._open, None
            await channel.close(None)


def _closed_error() -> Cancelled:
    return Cancelled(grpc.StatusCode.CANCELLED, "this client is closed")
