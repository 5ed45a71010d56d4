"""Calls of one flow over one connection: unary, or messages on an RPC stream.

They work on bytes and call back, rather than await, where they can: a generator that needs little of the
machine says more about the server.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from client.channel import call_metadata, open_channel
from client.errors import PredictionError, from_rpc_error, from_status
from client.load.flows import STREAM, Flow, Server
from client.load.wire import stream_message, with_timeout
from tickring.v1 import inference_pb2

SERVICE = "/tickring.v1.InferenceService/"
# The wire wants a positive timeout, also of a call that is late already.
LEAST_TIMEOUT_S = 1e-4

# A call, what the server measured, where it says so, and the name of its end; empty: it was answered.
Ended = Callable[["Call", inference_pb2.Timing | None, str], None]


@dataclass(slots=True)
class Call:
    """One call; `due_s` is the instant at which it should have been sent, time.monotonic()."""

    due_s: float
    payload: bytes
    timeout_s: float | None  # that is left


class Sender(ABC):
    """Tells `ended` once of each call."""

    def __init__(self, server: Server, ended: Ended) -> None:
        self._channel = open_channel(server.target, server.files)
        self._metadata = call_metadata(server.token)
        self._ended = ended

    @abstractmethod
    def send(self, call: Call) -> None:
        """Sends it; never waits."""

    @abstractmethod
    async def close(self) -> None:
        """Cancels what is out."""


def sender(server: Server, flow: Flow, ended: Ended) -> Sender:
    """Of the kind that the flow asks for, on a connection of its own."""
    if flow.mode == STREAM:
        return StreamSender(server, ended)
    return UnarySender(server, ended, flow.method)


class UnarySender(Sender):
    """An RPC for each call, of Predict or of the `method` of another service."""

    def __init__(self, server: Server, ended: Ended, method: str = "") -> None:
        super().__init__(server, ended)
        channel: Any = self._channel  # no serialisers: the stubs of gRPC know no calls on bytes
        self._rpc = channel.unary_unary(method or f"{SERVICE}Predict")
        self._timed = not method
        self._calls: set[asyncio.Task[None]] = set()

    def send(self, call: Call) -> None:
        """See `Sender`."""
        task = asyncio.ensure_future(self._call(call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """See `Sender`."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._channel.close(None)

    async def _call(self, call: Call) -> None:
        try:
            raw = await self._rpc(call.payload, timeout=call.timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self._ended(call, None, name_of(from_rpc_error(error)))
        else:
            timing = inference_pb2.PredictResponse.FromString(raw).timing if self._timed else None
            self._ended(call, timing, "")


class StreamSender(Sender):
    """Messages on one RPC stream, which is opened again after it broke."""

    def __init__(self, server: Server, ended: Ended) -> None:
        super().__init__(server, ended)
        channel: Any = self._channel
        self._rpc = channel.stream_stream(f"{SERVICE}PredictStream")
        self._unsent: deque[tuple[int, Call]] = deque()
        self._out: dict[int, Call] = {}
        self._sequence = 0
        self._more = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    def send(self, call: Call) -> None:
        """See `Sender`."""
        self._sequence += 1
        self._out[self._sequence] = call
        self._unsent.append((self._sequence, call))
        self._more.set()
        if self._life is None or self._life.done():
            self._life = asyncio.ensure_future(self._live())

    async def close(self) -> None:
        """See `Sender`."""
        self._out.clear()
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        await self._channel.close(None)

    async def _live(self) -> None:
        rpc = self._rpc(metadata=self._metadata)
        writer = asyncio.ensure_future(self._write(rpc))
        end = "UNAVAILABLE"
        try:
            async for raw in rpc:
                self._read(raw)
        except grpc.aio.AioRpcError as error:
            end = name_of(from_rpc_error(error))
        finally:
            writer.cancel()
            rpc.cancel()
            self._unsent.clear()
            out, self._out = self._out, {}
            for call in out.values():
                self._ended(call, None, end)

    async def _write(self, rpc: Any) -> None:
        try:
            while True:
                while self._unsent:
                    sequence, call = self._unsent.popleft()
                    payload = call.payload
                    if call.timeout_s is not None:
                        payload = with_timeout(payload, call.timeout_s)
                    await rpc.write(stream_message(sequence, payload))
                self._more.clear()
                await self._more.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            rpc.cancel()  # the reader learns why

    def _read(self, raw: bytes) -> None:
        answer = inference_pb2.PredictStreamResponse.FromString(raw)
        call = self._out.pop(answer.sequence, None)
        if call is None:
            return
        if answer.HasField("error"):
            self._ended(call, None, name_of(from_status(answer.error)))
        else:
            self._ended(call, answer.response.timing, "")


def name_of(error: PredictionError) -> str:
    """The status, and its reason where there is one."""
    return f"{error.code.name} {error.reason}" if error.reason else error.code.name
