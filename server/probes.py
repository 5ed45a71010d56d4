"""HTTP on the side: `/healthz` says that the supervisor runs, `/readyz` that the service serves.

`/status` has the books of the service as JSON: what was admitted, how it ended, what is predicted.
"""

import asyncio
import json
import os
from http import HTTPStatus
from typing import Any, Protocol

from server.ports import PortInUse

MAX_REQUEST_BYTES = 8192
REQUEST_TIMEOUT_S = 5.0


class Service(Protocol):
    """What is asked about."""

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        ...

    def books(self) -> dict[str, Any]:
        """See `Supervisor.books`."""
        ...


class ProbeServer:
    """Answers GET and HEAD of its paths and closes the connection; anything else is an error."""

    def __init__(self, host: str, port: int, service: Service) -> None:
        self._host = host
        self._port = port
        self._service = service
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Raises PortInUse."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=MAX_REQUEST_BYTES
            )
        except OSError as error:
            # asyncio's own text of a failed bind names the address once more.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise PortInUse(f"cannot listen on {self._host}:{self._port}: {reason}") from error

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                line = head.split(b"\r\n", 1)[0].decode("latin-1")
                writer.write(_response(*self._answer(line), head_only=line.startswith("HEAD ")))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a peer that says nothing sensible gets nothing
        finally:
            writer.close()

    def _answer(self, request_line: str) -> tuple[HTTPStatus, str]:
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, f"{method}: allowed are GET and HEAD\n"
        match path:
            case "/healthz":
                return HTTPStatus.OK, "ok\n"
            case "/readyz":
                if self._service.is_ready:
                    return HTTPStatus.OK, "ready\n"
                return HTTPStatus.SERVICE_UNAVAILABLE, "not ready\n"
            case "/status":
                return HTTPStatus.OK, json.dumps(self._service.books(), indent=2) + "\n"
            case _:
                return HTTPStatus.NOT_FOUND, "paths are /healthz, /readyz and /status\n"


def _response(status: HTTPStatus, text: str, *, head_only: bool) -> bytes:
    body = text.encode()
    kind = "application/json" if text.startswith("{") else "text/plain; charset=utf-8"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() if head_only else head.encode() + body
