"""`/metrics` among the other paths of the HTTP port."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.probes import ProbeServer
from server.reply import Reply


class Service:
    """What the other paths are about."""

    is_ready = True

    def books(self) -> dict[str, Any]:
        return {}


@pytest.fixture
async def server() -> AsyncIterator[ProbeServer]:
    """Answers with the Accept header that it was given."""

    async def metrics(accept: str) -> Reply:
        return Reply(f"<{accept}>".encode(), "text/x")

    server = ProbeServer("127.0.0.1", 0, Service(), metrics=metrics)
    await server.start()
    yield server
    server.close()


async def ask(server: ProbeServer, *lines: str) -> str:
    """All that comes back."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        try:
            return (await reader.read()).decode("latin-1")
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("headers", "accept"),
    [
        ((), ""),
        (("Host: here", "Accept: a/b;q=1, */*"), "a/b;q=1, */*"),
        (("ACCEPT:a/b", "accept :  c/d"), "a/b,c/d"),
        (("Accept-Encoding: gzip", "X: Accept: a/b", "Accept"), ""),
        (("Accept: a/é",), "a/é"),
    ],
)
async def test_accept_header_is_passed_on(server: ProbeServer, headers: tuple[str, ...], accept: str) -> None:
    """Of as many headers of that name as there are, and of no other."""
    answer = await ask(server, "GET /metrics?x=y HTTP/1.1", *headers)
    head, _, body = answer.partition("\r\n\r\n")
    assert body == f"<{accept}>".encode().decode("latin-1")
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\n")


async def test_head_and_unknown_paths(server: ProbeServer) -> None:
    """The first without a body; the second names it."""
    answer = await ask(server, "HEAD /metrics HTTP/1.1")
    assert answer.endswith("\r\n\r\n")
    assert "Content-Length: 2" in answer
    assert "paths are /healthz, /metrics, /readyz and /status" in await ask(server, "GET / HTTP/1.1")


async def test_service_without_metrics_has_no_such_path() -> None:
    """Nor does it name it."""
    server = ProbeServer("127.0.0.1", 0, Service())
    await server.start()
    answer = await ask(server, "GET /metrics HTTP/1.1")
    assert answer.startswith("HTTP/1.1 404 Not Found")
    assert "/metrics" not in answer
    server.close()
