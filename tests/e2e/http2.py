"""HTTP/2 by hand, frame by frame (RFC 9113): what no gRPC library would send."""

import asyncio
import struct
from dataclasses import dataclass
from typing import Self

from tests.e2e.calls import PATIENCE_S, PREDICT

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL, ENHANCE_YOUR_CALM = 8, 11


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """The code of a RST_STREAM or GOAWAY."""
        offset = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[offset : offset + 4], "big")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame to send."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def headers(*more: tuple[str, str], path: str = PREDICT) -> bytes:
    """A header block of a gRPC call, without indexing or Huffman coding (RFC 7541, 6.2.2)."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    )
    return block(*fields)


def block(*fields: tuple[str, str]) -> bytes:
    """A header block of nothing but these."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def message(payload: bytes) -> bytes:
    """A gRPC message: not compressed, its length, itself."""
    return b"\x00" + struct.pack("!I", len(payload)) + payload


def _string(text: str) -> bytes:
    return _integer(len(text)) + text.encode()


def _integer(value: int) -> bytes:
    """With a prefix of seven bits (RFC 7541, 5.1)."""
    if value < 127:
        return bytes([value])
    coded = bytearray([127])
    value -= 127
    while value >= 128:
        coded.append(value % 128 + 128)
        value //= 128
    return bytes([*coded, value])


class RawConnection:
    """A connection to a server in clear text. It answers no ping and no settings unless told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: str, *, source: str = "127.0.0.1", greet: bool = True) -> Self:
        """Connects from an address of this machine, and says what every client says first."""
        host, _, port = target.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        self = cls(reader, writer)
        if greet:
            await self.send(PREFACE, frame(SETTINGS, 0, 0))
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Drops the connection: unsent bytes are lost, and the server sees a reset."""
        self._writer.transport.abort()

    async def send(self, *frames: bytes) -> None:
        """Raises ConnectionError where the server has hung up."""
        self._writer.write(b"".join(frames))
        async with asyncio.timeout(PATIENCE_S):
            await self._writer.drain()

    async def receive(self) -> Frame | None:
        """The next frame; None: the server has hung up."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await self._reader.readexactly(9)
                kind, flags, stream = struct.unpack("!BBI", head[3:])
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(kind, flags, stream & 0x7FFFFFFF, payload)

    async def until(self, *kinds: int, acks: bool = True) -> Frame | None:
        """The next frame of these kinds; None: the server has hung up before it."""
        while (got := await self.receive()) is not None:
            if got.kind in kinds and (acks or not got.flags & ACK):
                return got
        return None

    async def hung_up(self) -> list[Frame]:
        """Reads all that the server still sends; returns once it has closed the connection."""
        got = []
        while (one := await self.receive()) is not None:
            got.append(one)
        return got
