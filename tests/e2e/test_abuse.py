"""What callers do that no client library would, and that others are served meanwhile."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import psutil
import pytest

from tests.e2e import http2
from tests.e2e.calls import RpcStream, ending_of, streamed, unary, window_request
from tests.e2e.conftest import Launch
from tests.e2e.http2 import RawConnection, frame, headers, message
from tests.e2e.service import BUNDLED, Service

Code = grpc.StatusCode
STREAMS = 10
CANCELS_PER_S = 20
METADATA_BYTES = 4096
LIMITS = {
    "TICKRING_SERVER__MAX_STREAMS_PER_CONNECTION": str(STREAMS),
    "TICKRING_SERVER__MAX_CANCELS_PER_S": str(CANCELS_PER_S),
    "TICKRING_SERVER__MAX_METADATA_BYTES": str(METADATA_BYTES),
    "TICKRING_SERVER__MAX_MESSAGE_BYTES": "65536",
    "TICKRING_SERVER__HANDSHAKE_TIMEOUT_S": "0.5",
    "TICKRING_SERVER__MIN_PING_INTERVAL_S": "0.1",
    "TICKRING_SERVER__KEEPALIVE_S": "3",
}
GOOD = message(window_request().SerializeToString())
# The front end answers it at once, after all that came before it on the connection.
BAD = message(b"\xff")
# Bad peers come from another address of this machine.
SOMEWHERE_ELSE = "127.0.0.2"


@pytest.fixture(scope="module")
def strict(launch: Launch) -> Iterator[Service]:
    """A server with small limits."""
    service = launch(settings=BUNDLED | LIMITS).ready()
    yield service
    service.stop()


@pytest.fixture
async def neighbour(strict: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A good caller, who calls all the time, and who gets an answer each time."""
    async with grpc.aio.insecure_channel(strict.target) as channel:
        ends: list[Code] = []
        leaving = asyncio.Event()

        async def go_on() -> None:
            while not leaving.is_set():
                await asyncio.sleep(0.01)
                ends.append((await unary(channel, window_request())).code)

        assert (await unary(channel, window_request())).code is Code.OK
        calling = asyncio.create_task(go_on())
        yield channel
        ends.append((await unary(channel, window_request())).code)  # after all that
        leaving.set()
        await calling
        assert set(ends) == {Code.OK}


def call(stream: int, payload: bytes = GOOD) -> bytes:
    """A whole unary call."""
    return frame(http2.HEADERS, http2.END_HEADERS, stream, headers()) + frame(
        http2.DATA, http2.END_STREAM, stream, payload
    )


def reset(stream: int) -> bytes:
    """A cancel."""
    return frame(http2.RST_STREAM, 0, stream, http2.CANCEL.to_bytes(4, "big"))


async def status(connection: RawConnection) -> int:
    """The first grpc-status on this connection; later ones would be in HPACK's table."""
    while (got := await connection.until(http2.HEADERS)) is not None:
        if found := re.search(rb"grpc-status[\x01\x02](\d+)", got.payload):
            return int(found[1])
    raise AssertionError("hung up without a status")


async def test_connection_that_says_nothing(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """Or only half of its first words: each is hung up on, and twenty at once are no burden."""
    for greeting in (b"", http2.PREFACE[:10], b"GET / HTTP/1.1\r\n\r\n"):
        async with contextlib.AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(await RawConnection.open(strict.target, greet=False))
                for _ in range(20)
            ]
            for connection in connections:
                await connection.send(greeting)
            for connection in connections:
                frames = await connection.hung_up()
                said = [got.payload for got in frames if got.kind == http2.GOAWAY]
                assert greeting.startswith(b"GET") or b"handshake timeout" in said[-1]


async def test_peer_that_is_gone_in_the_middle_of_a_call(
    strict: Service, neighbour: grpc.aio.Channel
) -> None:
    """It answers no ping, so its connection ends; one that answers may take its time with its message."""
    begun = frame(http2.HEADERS, http2.END_HEADERS, 1, headers()) + frame(http2.DATA, 0, 1, GOOD[:100])
    async with (
        await RawConnection.open(strict.target) as slow,
        await RawConnection.open(strict.target) as gone,
    ):
        for connection in (slow, gone):
            await connection.send(begun)
        dead = asyncio.create_task(gone.hung_up())
        while not dead.done():
            ping = await slow.until(http2.PING)
            assert ping is not None
            await slow.send(frame(http2.PING, http2.ACK, 0, ping.payload))
        await dead
        await slow.send(frame(http2.DATA, http2.END_STREAM, 1, GOOD[100:]))
        assert await status(slow) == Code.OK.value[0]


async def test_flood_of_pings(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """Is answered with ENHANCE_YOUR_CALM and the end of the connection; as many, slower, are not."""
    ping = frame(http2.PING, 0, 0, b"12345678")
    async with await RawConnection.open(strict.target) as connection:
        assert await connection.until(http2.SETTINGS) is not None
        await connection.send(*[ping] * 6)
        (goaway,) = (got for got in await connection.hung_up() if got.kind == http2.GOAWAY)
        assert goaway.error == http2.ENHANCE_YOUR_CALM
    async with await RawConnection.open(strict.target) as connection:
        for _ in range(6):
            await asyncio.sleep(0.2)
            await connection.send(ping)
            while True:  # the server's own, which keep this connection
                got = await connection.until(http2.PING)
                assert got is not None
                if got.flags & http2.ACK:
                    break
                await connection.send(frame(http2.PING, http2.ACK, 0, got.payload))


async def test_metadata_that_is_too_long(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """Ends that call alone, always from the same size on."""
    for _ in range(10):
        end = await unary(neighbour, window_request(), metadata=[("x-long", "y" * (METADATA_BYTES * 3 // 4))])
        assert end.code is Code.OK
        end = await unary(neighbour, window_request(), metadata=[("x-long", "y" * METADATA_BYTES)])
        assert end.code is Code.RESOURCE_EXHAUSTED, end


async def least_memory(process: psutil.Process) -> int:
    """Bytes that it keeps, without what it reads into and gives back at once."""
    least = process.memory_info().rss
    for _ in range(20):
        await asyncio.sleep(0.05)
        least = min(least, process.memory_info().rss)
    return least


async def test_headers_without_an_end(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """What they take is bounded: after eighty megabytes, twice as many more make no difference."""
    process = psutil.Process(strict.pid("frontend-0"))
    piece = frame(http2.CONTINUATION, 0, 1, b"\x00\x03x-a\x7f\x81\x7e" + b"y" * 16256)
    async with await RawConnection.open(strict.target, source=SOMEWHERE_ELSE) as connection:
        await connection.send(frame(http2.HEADERS, 0, 1, headers()))
        sizes = []
        with contextlib.suppress(ConnectionError):  # it may well hang up
            for megabytes in (80, 160):
                for _ in range(megabytes * 1_000_000 // len(piece)):
                    await connection.send(piece)
                sizes.append(await least_memory(process))
        assert sizes[-1] - sizes[0] < 40_000_000


async def test_message_that_is_too_long(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """Is refused by the length that it announces, before it is sent."""
    async with await RawConnection.open(strict.target) as connection:
        await connection.send(
            frame(http2.HEADERS, http2.END_HEADERS, 1, headers()),
            frame(http2.DATA, 0, 1, b"\x00" + (65_537).to_bytes(4, "big")),
        )
        assert await status(connection) == Code.RESOURCE_EXHAUSTED.value[0]


async def test_more_streams_than_a_connection_may_have(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """Those too many are reset, unseen: safe to send again. Half as many are never too many."""
    async with await RawConnection.open(strict.target) as connection:
        begun = [frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 1, headers()) for n in range(STREAMS + 5)]
        await connection.send(*begun)
        resets = [await connection.until(http2.RST_STREAM) for _ in range(5)]
        assert [got and got.stream for got in resets] == [2 * n + 1 for n in range(STREAMS, STREAMS + 5)]
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(strict.target, options=options) as channel:
        for calls, codes in ((STREAMS // 2, {Code.OK}), (STREAMS * 3, {Code.OK, Code.UNAVAILABLE})):
            ends = await asyncio.gather(*(unary(channel, window_request()) for _ in range(calls)))
            assert {end.code for end in ends} <= codes


@pytest.mark.parametrize("payload", [None, GOOD], ids=["headers", "calls"])
async def test_flood_of_resets(strict: Service, neighbour: grpc.aio.Channel, payload: bytes | None) -> None:
    """Ten thousand streams, each reset as soon as it is opened: "rapid reset"."""
    process = psutil.Process(strict.pid("frontend-0"))
    before = process.memory_info().rss
    async with await RawConnection.open(strict.target, source=SOMEWHERE_ELSE) as connection:
        reading = asyncio.create_task(connection.hung_up())
        with contextlib.suppress(ConnectionError):  # it may well hang up
            for stream in range(1, 20_001, 2):
                begun = (
                    call(stream) if payload else frame(http2.HEADERS, http2.END_HEADERS, stream, headers())
                )
                await connection.send(begun, reset(stream))
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    assert process.memory_info().rss - before < 20_000_000


async def test_peer_that_does_little_but_cancel(strict: Service, neighbour: grpc.aio.Channel) -> None:
    """It is refused for a second, on all its connections, and then may call again; others are never."""
    burst = CANCELS_PER_S * 5
    async with contextlib.AsyncExitStack() as stack:
        with strict.paused():
            for _ in range(burst // (STREAMS - 1) + 2):
                connection = await stack.enter_async_context(
                    await RawConnection.open(strict.target, source=SOMEWHERE_ELSE)
                )
                queued = range(1, 2 * STREAMS - 1, 2)
                await connection.send(*map(call, queued), call(2 * STREAMS - 1, BAD))
                assert await status(connection) in (
                    Code.INVALID_ARGUMENT.value[0],  # so those before it are queued
                    Code.RESOURCE_EXHAUSTED.value[0],
                )
                await connection.send(*map(reset, queued))
        strict.wait_for("refusing a peer that cancels too much")
        seen = set()
        while Code.OK.value[0] not in seen:
            async with await RawConnection.open(strict.target, source=SOMEWHERE_ELSE) as connection:
                await connection.send(call(1))
                seen.add(await status(connection))
    assert seen == {Code.RESOURCE_EXHAUSTED.value[0], Code.OK.value[0]}


async def test_connections_that_are_idle_or_old_end(launch: Launch) -> None:
    """The idle one is told to go, the old one too, with a time for what is in flight; calls go on."""
    settings = BUNDLED | {
        "TICKRING_SERVER__MAX_CONNECTION_IDLE_S": "0.5",
        "TICKRING_SERVER__MAX_CONNECTION_AGE_S": "2",
        "TICKRING_SERVER__DRAIN_GRACE_S": "1",
    }
    service = launch(settings=settings).ready()
    async with await RawConnection.open(service.target) as connection:
        frames = await connection.hung_up()
        assert [got.error for got in frames if got.kind == http2.GOAWAY]
    async with grpc.aio.insecure_channel(service.target) as channel:
        stream = RpcStream(channel)
        await stream.send(streamed(1, window_request()))
        assert (await stream.answer())[1].code is Code.OK
        ended = asyncio.create_task(ending_of(stream.call))
        while not ended.done():  # other calls do not notice
            assert (await unary(channel, window_request())).code is Code.OK
        assert (await ended).code is Code.UNAVAILABLE
    service.stop()
