"""Connections that no gRPC library would make: each sends something bad, in frames by hand, and leaves.

A script may be hung up on at any time. It keeps few things open at once: that many connections may hold
many calls open is known, and limits elsewhere are for that (docs/security.md).
"""

import asyncio
import gzip
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache

from tests.e2e import http2
from tests.e2e.calls import PREDICT, PREDICT_STREAM, window_request
from tests.e2e.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    RawConnection,
    block,
    frame,
    message,
)
from tests.fuzz.tokens import AUTHORIZATION

PRIORITY, PUSH_PROMISE, WINDOW_UPDATE = 2, 5, 8
PADDED, WITH_PRIORITY = 0x8, 0x20
# How long a script listens to what the server says before it leaves: for most, whether it is hung up on.
LISTEN_S = (0.0, 0.3)
# A script that has not ended by then hangs: the server neither takes its bytes nor hangs up.
PATIENCE_S = 60.0
# The addresses of bad peers, so that refusing one of them for its cancels refuses no good one.
ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 10))
SLOW_ADDRESS = "127.0.1.1"
IDLE_AT_ONCE = 40
MAX_FRAME = 16_384


@dataclass
class Peers:
    """How connections ended, by script, and what should not have happened."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    connections: int = 0
    streams: int = 0
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    flooding: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the one that does


@dataclass
class Peer:
    """One connection to a server, and whose it is."""

    target: str
    connection: RawConnection
    rng: random.Random
    account: Peers

    async def send(self, *frames: bytes) -> None:
        """As of a RawConnection; counts the streams that are begun."""
        self.account.streams += sum(part[3:4] == bytes([HEADERS]) for part in frames)
        await self.connection.send(*frames)


Script = Callable[[Peer], Awaitable[None]]


def headers(*more: tuple[str, str], path: str = PREDICT) -> bytes:
    """A header block of a call with the campaign's token."""
    return http2.headers(AUTHORIZATION, *more, path=path)


@cache
def good_call() -> bytes:
    """A whole unary call on stream 1."""
    return frame(HEADERS, END_HEADERS, 1, headers()) + frame(DATA, END_STREAM, 1, good_message())


@cache
def good_message() -> bytes:
    """Of a call that is answered."""
    return message(window_request().SerializeToString())


async def run(target: str, name: str, seed: int, number: int, account: Peers) -> None:
    """One connection that does what its script says."""
    rng = random.Random(f"{seed}/raw/{number}")
    script = SCRIPTS[name]
    greet = script not in _WITHOUT_GREETING
    source = SLOW_ADDRESS if script is byte_by_byte else rng.choice(ADDRESSES)
    alone = account.flooding if script is rapid_resets else nullcontext()
    account.connections += 1
    end = "left"
    async with alone:
        begun_s = time.monotonic()
        try:
            async with (
                asyncio.timeout(PATIENCE_S),
                await RawConnection.open(target, source=source, greet=greet) as connection,
            ):
                await script(Peer(target, connection, rng, account))
                end = await _listen(connection, rng.uniform(*LISTEN_S))
                if rng.random() < 0.3:
                    connection.reset()
        except ConnectionError:
            end = "hung up on"
        except TimeoutError:
            end = "hangs"
            account.problems.append(f"raw connection {number}, {name}: hangs")
        except AssertionError as error:
            account.problems.append(f"raw connection {number}, {name}: {error}")
        account.slowest_s = max(account.slowest_s, time.monotonic() - begun_s)
    account.ends[name, end] += 1


async def _listen(connection: RawConnection, patience_s: float) -> str:
    end = "left"
    with suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while (got := await connection.receive()) is not None:
                if got.kind == GOAWAY:
                    end = f"GOAWAY {got.error}"
            return end if end != "left" else "hung up on"
    return end


async def no_preface(peer: Peer) -> None:
    """Something else than HTTP/2, or the beginning of it."""
    rng = peer.rng
    greetings = (
        b"",
        PREFACE[: rng.randrange(len(PREFACE))],
        PREFACE[:-1] + b"\x00",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
        b"SSH-2.0-x\r\n",
        PREFACE + PREFACE,
        PREFACE + frame(PING, 0, 0, bytes(8)),
        rng.randbytes(rng.choice((1, 24, 1000, 100_000))),
    )
    await peer.send(rng.choice(greetings))


async def idle(peer: Peer) -> None:
    """Several connections that say hello and no more, at once."""
    rng = peer.rng
    others = [
        await RawConnection.open(peer.target, source=rng.choice(ADDRESSES)) for _ in range(IDLE_AT_ONCE)
    ]
    peer.account.connections += len(others)
    await asyncio.sleep(rng.uniform(0, 1))
    for other in others:
        async with other:
            if rng.random() < 0.5:
                other.reset()


async def truncated(peer: Peer) -> None:
    """A good call that breaks off anywhere."""
    call = good_call()
    place = peer.rng.choice((peer.rng.randrange(len(call)), peer.rng.randrange(200)))
    await peer.send(call[:place])


async def flipped(peer: Peer) -> None:
    """A good call with some bits turned, mostly of its headers."""
    call = bytearray(good_call())
    for _ in range(peer.rng.choice((1, 2, 10))):
        call[peer.rng.choice((peer.rng.randrange(200), peer.rng.randrange(len(call))))] ^= (
            1 << peer.rng.randrange(8)
        )
    await peer.send(bytes(call))


async def random_frames(peer: Peer) -> None:
    """Of any type, flags, stream and content, perhaps after a good beginning."""
    rng = peer.rng
    if rng.random() < 0.5:
        await peer.send(frame(HEADERS, END_HEADERS, 1, headers()))
    for _ in range(rng.choice((1, 5, 50))):
        stream = rng.choice((0, 1, 2, 3, 5, (1 << 31) - 1, rng.getrandbits(32)))
        payload = rng.randbytes(rng.choice((0, 1, 4, 5, 6, 8, 9, 100, MAX_FRAME, MAX_FRAME + 1)))
        await peer.send(frame(rng.choice((*range(11), 255)), rng.getrandbits(8), stream, payload))


async def lying_frames(peer: Peer) -> None:
    """Lengths of frames, paddings and messages that are not what they say."""
    rng = peer.rng
    begun = frame(HEADERS, END_HEADERS, 1, headers())
    good = good_message()
    lies: Sequence[bytes] = (
        begun + frame(DATA, END_STREAM, 1, b"\x00" + rng.getrandbits(32).to_bytes(4, "big") + good[5:]),
        begun + frame(DATA, END_STREAM, 1, b"\x00\xff\xff\xff\xff"),
        begun + frame(DATA, END_STREAM, 1, bytes([rng.randrange(1, 256)]) + good[1:]),
        begun + frame(DATA, END_STREAM, 1, good * 3),
        begun + frame(DATA, END_STREAM, 1, good[: rng.randrange(10)]),
        begun + frame(DATA, END_STREAM | PADDED, 1, bytes([rng.choice((0, 1, 200, 255))]) + good[:100]),
        begun + frame(DATA, PADDED, 1),
        begun + frame(DATA, 0, 1) * 2000,
        begun + (rng.getrandbits(24) | 0x8000).to_bytes(3, "big") + b"\x00\x00\x00\x00\x00\x01" + good[:5000],
        (len(begun) + rng.randint(-40, 40)).to_bytes(3, "big") + begun[3:] + frame(DATA, END_STREAM, 1, good),
        frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, b"\xff" + headers()),
        frame(PING, 0, 0, bytes(rng.choice((0, 7, 9)))),
        frame(RST_STREAM, 0, 1, bytes(3)),
        frame(GOAWAY, 0, 0, bytes(rng.choice((0, 7, 8, 1000)))),
        begun + frame(DATA, END_STREAM, 1, good) + frame(DATA, END_STREAM, 1, good),
    )
    await peer.send(rng.choice(lies))


async def streams_in_disorder(peer: Peer) -> None:
    """Even streams, streams that go back, data before headers, dependence on oneself, pushes."""
    rng = peer.rng
    one = frame(HEADERS, END_HEADERS, rng.choice((1, 3, 7)), headers())
    parts = [
        one,
        one,
        frame(HEADERS, END_HEADERS, 2, headers()),
        frame(HEADERS, END_HEADERS, 0, headers()),
        frame(HEADERS, END_HEADERS, (1 << 31) - 1, headers()),
        frame(DATA, 0, 9, b"x"),
        frame(DATA, 0, 0, b"x"),
        frame(PRIORITY, 0, 5, (5).to_bytes(4, "big") + b"\x00"),
        frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4, "big") + headers()),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block(("x-trailer", "y"))),
        frame(RST_STREAM, 0, 99, bytes(4)),
        frame(WINDOW_UPDATE, 0, 99, (1).to_bytes(4, "big")),
        frame(HEADERS, END_HEADERS | END_STREAM, 11, headers()),
        frame(GOAWAY, 0, 0, bytes(8)),
    ]
    rng.shuffle(parts)
    await peer.send(*parts[: rng.randint(1, len(parts))])


async def continuation_flood(peer: Peer) -> None:
    """Headers that do not end, or that end in another stream."""
    rng = peer.rng
    piece = block(("x-a", "y" * rng.choice((0, 10, 16_000))))
    stream = rng.choice((1, 1, 1, 3))
    if rng.random() < 0.9:
        await peer.send(frame(HEADERS, 0, 1, headers()))
    for _ in range(rng.choice((3, 50, 300))):
        await peer.send(frame(CONTINUATION, 0, stream, piece))
    if rng.random() < 0.5:
        await peer.send(frame(CONTINUATION, END_HEADERS, 1, piece))


async def giant_headers(peer: Peer) -> None:
    """One long header, or many; sometimes each of them goes to HPACK's table."""
    rng = peer.rng
    coded = headers() + rng.choice(
        (
            block(("x-long", "z" * rng.choice((15_000, 17_000, 60_000, 1_000_000)))),
            block(*((f"x-{number}", "v") for number in range(rng.choice((100, 3000))))),
            b"".join(b"\x40" + part[1:] for part in (block((f"x-{n}", "w" * 100)) for n in range(500))),
        )
    )
    pieces = [coded[at : at + MAX_FRAME] for at in range(0, len(coded), MAX_FRAME)]
    kinds = [HEADERS, *[CONTINUATION] * (len(pieces) - 1)]
    for kind, piece in zip(kinds, pieces, strict=True):
        await peer.send(frame(kind, END_HEADERS if piece is pieces[-1] else 0, 1, piece))
    await peer.send(frame(DATA, END_STREAM, 1, good_message()))


async def bad_header_blocks(peer: Peer) -> None:
    """Indexes that are none, integers without end, sizes of the table, one entry named very often."""
    rng = peer.rng
    table = b"\x40" + block(("x-big", "b" * 3000))[1:]
    coded = rng.choice(
        (
            b"\x80",
            b"\xff" + b"\xff" * rng.choice((4, 10, 1000)) + b"\x7f",
            b"\xfe" * 100,
            b"\x3f\xe1\xff\xff\xff\x0f" * rng.choice((1, 3, 1000)),
            b"\x20" + headers() + b"\x3f\xe1\x1f",
            b"\x00\x7f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x00\x85" + rng.randbytes(5) + b"\x85" + rng.randbytes(5),
            b"\x00\x81\xff\x00",
            headers() + table + b"\xbe" * 5000,
            rng.randbytes(rng.choice((1, 10, 1000))),
        )
    )
    await peer.send(frame(HEADERS, END_HEADERS, 1, coded), frame(DATA, END_STREAM, 1, good_message()))


async def bad_calls(peer: Peer) -> None:
    """Headers that are well-formed HTTP/2 and no good gRPC."""
    rng = peer.rng
    timeouts = ("99999999H", "999999999H", "0n", "-1S", "1", "S", "1X", "", "1" * 50 + "H", "1.5S", "1n")
    more = [("grpc-timeout", rng.choice(timeouts)) for _ in range(rng.choice((1, 1, 2)))]
    more += rng.choice(
        (
            [],
            [("grpc-encoding", rng.choice(("gzip", "deflate", "zstd", "identity", "", "\x7f")))],
            [("content-length", rng.choice(("0", "-1", "1" * 30)))],
            [("tickring-priority", rng.choice(("ü", "\x01", "high\x00", "x" * 8000)))],
            [("x-a-bin", rng.choice(("!!!", "AAA", "====", "A" * 9000, "\xff")))],
            [("authorization", "Bearer \xff\xfe"), ("authorization", "x")],
            [("X-Upper", "x"), ("connection", "close"), ("", "no name")],
            [("grpc-status", "0"), ("grpc-message", "%zz%"), ("grpc-previous-rpc-attempts", "x")],
            [(":path", PREDICT), (":method", "POST"), (":unknown", "1")],
        )
    )
    paths = (PREDICT, PREDICT, PREDICT_STREAM, "", "/", "//", "x", "/a", "*", "/\x00", "/" + "p" * 5000)
    kinds = (
        headers(*more, path=rng.choice(paths)),
        block((":method", rng.choice(("GET", "PUT", ""))), (":scheme", "http"), (":path", PREDICT), *more),
        block((":method", "POST"), (":path", PREDICT), ("content-type", "text/html"), *more),
        block(*more),
        headers(*more)[::-1],
    )
    await peer.send(
        frame(HEADERS, END_HEADERS, 1, rng.choice(kinds)), frame(DATA, END_STREAM, 1, good_message())
    )


async def bad_compression(peer: Peer) -> None:
    """Messages that are no gzip, break off, or unpack to a thousand times their size."""
    rng = peer.rng
    packed = rng.choice((gzip_bomb(), gzip_bomb()[: rng.randrange(2000)], rng.randbytes(500), b""))
    data = b"\x01" + len(packed).to_bytes(4, "big") + packed
    await peer.send(
        frame(HEADERS, END_HEADERS, 1, headers(("grpc-encoding", rng.choice(("gzip", "deflate")))))
    )
    for at in range(0, len(data), MAX_FRAME):
        await peer.send(frame(DATA, 0, 1, data[at : at + MAX_FRAME]))
    await peer.send(frame(DATA, END_STREAM, 1))


@cache
def gzip_bomb() -> bytes:
    """64 MiB of zeros in 64 KiB."""
    return gzip.compress(bytes(64 << 20))


async def rapid_resets(peer: Peer) -> None:
    """Streams that are reset as soon as they are opened, with a call on them or not.

    Where more than a thousand wait for the front end, gRPC cancels new calls at random, good ones too. So
    there is one flood at a time here, and it is over when a call after it has been looked at.
    """
    rng = peer.rng
    calls = rng.random() < 0.3
    code = rng.choice((http2.CANCEL, 0, 2, 0xFFFFFFFF)).to_bytes(4, "big")
    last = 2 * rng.choice((20, 100, 400)) + 1
    for stream in range(1, last, 2):
        begun = frame(HEADERS, END_HEADERS, stream, headers())
        if calls:
            begun += frame(DATA, END_STREAM, stream, good_message())
        await peer.send(begun, frame(RST_STREAM, 0, stream, code))
    await peer.send(frame(HEADERS, END_HEADERS, last, headers()))
    await peer.send(frame(DATA, END_STREAM, last, good_message()))
    while (got := await peer.connection.until(HEADERS)) is not None and got.stream != last:
        pass


async def window_overflow(peer: Peer) -> None:
    """Windows of more than they may be, of nothing, and of streams that are not there."""
    rng = peer.rng
    await peer.send(frame(HEADERS, END_HEADERS, 1, headers()))
    for _ in range(rng.choice((1, 2, 100, 2000))):
        size = rng.choice((0, 1, (1 << 31) - 1, (1 << 32) - 1)).to_bytes(4, "big")
        await peer.send(frame(WINDOW_UPDATE, 0, rng.choice((0, 1, 3)), size))


async def settings_flood(peer: Peer) -> None:
    """Any settings, of any value, many times, and no acknowledgement of the server's."""
    rng = peer.rng
    values = (0, 1, 16_384, 65_535, (1 << 24), (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    for _ in range(rng.choice((1, 10, 500))):
        payload = b"".join(
            rng.choice((*range(8), 0xFE03, 0xFFFF)).to_bytes(2, "big") + rng.choice(values).to_bytes(4, "big")
            for _ in range(rng.choice((0, 1, 5, 100)))
        )
        cut = rng.choice((0, 0, 0, 1))
        await peer.send(frame(SETTINGS, rng.choice((0, 0, 0, ACK)), 0, payload[: len(payload) - cut]))
    await peer.send(good_call())


async def ping_flood(peer: Peer) -> None:
    """More pings than the server likes; answers to pings that it never sent."""
    for _ in range(peer.rng.choice((3, 100, 3000))):
        await peer.send(frame(PING, peer.rng.choice((0, 0, ACK)), 0, peer.rng.randbytes(8)))


async def answers_unread(peer: Peer) -> None:
    """Calls with a window of nothing for their answers, which the server has to keep for a while."""
    rng = peer.rng
    await peer.send(frame(SETTINGS, 0, 0, b"\x00\x04" + rng.choice((0, 1, 100)).to_bytes(4, "big")))
    for stream in range(1, 2 * rng.choice((1, 20, 60)), 2):
        await peer.send(
            frame(HEADERS, END_HEADERS, stream, headers()), frame(DATA, END_STREAM, stream, good_message())
        )


async def calls_without_message(peer: Peer) -> None:
    """Calls and RPC streams that are opened and never say what they want."""
    for stream in range(1, 2 * peer.rng.choice((1, 10, 30)), 2):
        path = peer.rng.choice((PREDICT, PREDICT_STREAM))
        await peer.send(frame(HEADERS, END_HEADERS, stream, headers(path=path)))
    await asyncio.sleep(peer.rng.uniform(0, 0.5))


async def byte_by_byte(peer: Peer) -> None:
    """A good call whose first bytes come one by one, and the rest in small pieces: it is answered."""
    request = window_request(1, priority="PRIORITY_MARKET_DATA_UPDATE")
    request.timeout.seconds = int(PATIENCE_S)  # its class would give it less than a busy machine may take
    call = frame(HEADERS, END_HEADERS, 1, headers())
    call += frame(DATA, END_STREAM, 1, message(request.SerializeToString()))
    slow = peer.rng.choice((50, 200, 400))
    for at in range(slow):
        await peer.send(call[at : at + 1])
        await asyncio.sleep(peer.rng.choice((0, 0, 0.002)))
    for at in range(slow, len(call), 500):
        await peer.send(call[at : at + 500])
    while (got := await peer.connection.until(HEADERS)) is not None:
        if found := re.search(rb"grpc-status\x01(\d)", got.payload):
            assert found[1] == b"0", f"a slow but good call ends with {got.payload!r}"
            return
    raise AssertionError("a slow but good call was hung up on")


SCRIPTS: dict[str, Script] = {
    script.__name__.replace("_", " "): script
    for script in (
        *(no_preface, idle, truncated, flipped, random_frames, lying_frames, streams_in_disorder),
        *(continuation_flood, giant_headers, bad_header_blocks, bad_calls, bad_compression, rapid_resets),
        *(window_overflow, settings_flood, ping_flood, answers_unread, calls_without_message, byte_by_byte),
    )
}
_WITHOUT_GREETING = (no_preface,)
