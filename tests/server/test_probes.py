"""HTTP probes over a real socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import pytest

from server import probes
from server.ports import PortInUse
from server.probes import ProbeServer
from server.reply import Reply


class Service:
    """What is probed."""

    is_ready = True

    def books(self) -> dict[str, Any]:
        return {"frontends": [{"name": "é", "admitted": 5}]}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[ProbeServer]:
    server = ProbeServer("127.0.0.1", 0, service)
    await server.start()
    yield server
    server.close()


async def ask(server: ProbeServer, raw: bytes, *, half_close: bool = False) -> bytes:
    """All that comes back until the server closes the connection."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        if half_close:
            writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("GET /healthz HTTP/1.1", "200 OK", "ok\n"),
        ("GET /readyz HTTP/1.1", "200 OK", "ready\n"),
        ("GET /readyz?verbose=1 HTTP/1.0", "200 OK", "ready\n"),
        ("GET / HTTP/1.1", "404 Not Found", "paths are /healthz, /readyz and /status\n"),
        ("GET", "404 Not Found", "paths are /healthz, /readyz and /status\n"),
        ("POST /healthz HTTP/1.1", "405 Method Not Allowed", "POST: allowed are GET and HEAD\n"),
        ("GÉT /healthz HTTP/1.1", "405 Method Not Allowed", "GÉT: allowed are GET and HEAD\n"),
    ],
)
async def test_answers(server: ProbeServer, line: str, status: str, body: str) -> None:
    """Status, length in bytes, body, and the connection is closed."""
    answer = await ask(server, f"{line}\r\nHost: here\r\n\r\n".encode("latin-1"))
    head, _, rest = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == f"HTTP/1.1 {status}"
    assert f"Content-Length: {len(body.encode())}" in lines
    assert "Connection: close" in lines
    assert rest.decode() == body


async def test_head_has_no_body(server: ProbeServer) -> None:
    """But the length of the one that GET would have."""
    answer = await ask(server, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_status_has_the_books_as_json(server: ProbeServer) -> None:
    """Of the service; the rest is text."""
    head, _, body = (await ask(server, b"GET /status HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
    assert json.loads(body) == Service().books()
    assert b"Content-Type: application/json" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Content-Type: text/plain" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")


async def test_further_paths_are_answered_by_their_routes(service: Service) -> None:
    """With their own status, kind and headers; what they are asked is theirs to read."""

    async def odd(query: str) -> Reply:
        return Reply(query.encode(), "text/odd", HTTPStatus.ACCEPTED, (("Odd", "yes"),))

    server = ProbeServer("127.0.0.1", 0, service, {"/": odd, "/healthz": odd})
    await server.start()
    try:
        answer = await ask(server, b"GET /?a=b&c HTTP/1.1\r\n\r\n")
        assert answer == (
            b"HTTP/1.1 202 Accepted\r\nContent-Type: text/odd\r\nContent-Length: 5\r\nOdd: yes\r\n"
            b"Connection: close\r\n\r\na=b&c"
        )
        # A probe that asks for nothing gets the plain answer, whatever else this path can do.
        assert b"\r\n\r\nok\n" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await ask(server, b"GET /healthz?deep=1 HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\ndeep=1")
        assert b"paths are /, /healthz, /readyz and /status" in await ask(
            server, b"GET /none HTTP/1.1\r\n\r\n"
        )
    finally:
        server.close()


async def test_readiness_is_asked_each_time(server: ProbeServer, service: Service) -> None:
    """Alive all along, ready only while it is."""
    service.is_ready = False
    assert b" 503 Service Unavailable" in await ask(server, b"GET /readyz HTTP/1.1\r\n\r\n")
    assert b" 200 OK" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")
    service.is_ready = True
    assert b" 200 OK" in await ask(server, b"GET /readyz HTTP/1.1\r\n\r\n")


async def test_peer_that_says_too_little_gets_nothing(server: ProbeServer) -> None:
    """Half a request; the next peer is answered."""
    assert await ask(server, b"GET /healthz HT", half_close=True) == b""
    assert b" 200 OK" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")


async def test_peer_that_says_too_much_is_cut_off(server: ProbeServer) -> None:
    """More than a request may have; the next peer is answered."""
    with suppress(ConnectionError):  # closed with bytes unread, so the kernel may reset the connection
        assert await ask(server, b"GET /healthz HTTP/1.1\r\nA: " + b"x" * 2 * probes.MAX_REQUEST_BYTES) == b""
    assert b" 200 OK" in await ask(server, b"GET /healthz HTTP/1.1\r\n\r\n")


async def test_peer_that_says_nothing_is_dropped(
    server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while; it holds a connection no longer than that."""
    monkeypatch.setattr(probes, "REQUEST_TIMEOUT_S", 0.01)
    assert await ask(server, b"") == b""


async def test_port_that_is_taken() -> None:
    """Told as a port that is in use, in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"^cannot listen on 127.0.0.1:{port}: Address already in use$"):
            await ProbeServer("127.0.0.1", port, Service()).start()


def test_closing_what_was_never_started() -> None:
    """Is no error: the start of something else may have failed."""
    ProbeServer("127.0.0.1", 0, Service()).close()
