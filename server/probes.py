"""HTTP on the side: `/healthz` says that the supervisor runs, `/readyz` that the service serves.

`/status` has the books of the service as JSON: what was admitted, how it ended, what is predicted. Other
paths are given by who makes their views, `/metrics` and `/live` for example.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from server.ports import PortInUse
from server.reply import JSON, Reply, Route, text

MAX_REQUEST_BYTES = 8192
REQUEST_TIMEOUT_S = 5.0
_OWN = ("/healthz", "/readyz", "/status")
METRICS = "/metrics"


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

    def __init__(
        self,
        host: str,
        port: int,
        service: Service,
        routes: Mapping[str, Route] | None = None,
        metrics: Route | None = None,
    ) -> None:
        """Args:
        routes: by path, what else is answered; `/healthz` among them answers where a query is asked.
        metrics: answers `/metrics`, given the Accept header, empty where there is none.
        """
        self._host = host
        self._port = port
        self._service = service
        self._routes = dict(routes or {})
        self._metrics = metrics
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
                line, *headers = head.decode("latin-1").split("\r\n")
                reply = await self._answer(line, headers)
                writer.write(reply.head() if line.startswith("HEAD ") else reply.head() + reply.body)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a peer that says nothing sensible gets nothing
        finally:
            writer.close()

    async def _answer(self, request_line: str, headers: Sequence[str]) -> Reply:
        method, _, rest = request_line.partition(" ")
        path, _, query = rest.partition(" ")[0].partition("?")
        if method not in ("GET", "HEAD"):
            return text(f"{method}: allowed are GET and HEAD\n", HTTPStatus.METHOD_NOT_ALLOWED)
        if path in self._routes and (query or path not in _OWN):
            return await self._routes[path](query)
        if path == METRICS and self._metrics is not None:
            return await self._metrics(_accepted(headers))
        match path:
            case "/healthz":
                return text("ok\n")
            case "/readyz":
                if self._service.is_ready:
                    return text("ready\n")
                return text("not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)
            case "/status":
                return Reply(f"{json.dumps(self._service.books(), indent=2)}\n".encode(), JSON)
            case _:
                *others, last = sorted({*_OWN, *self._routes, *([METRICS] if self._metrics else [])})
                return text(f"paths are {', '.join(others)} and {last}\n", HTTPStatus.NOT_FOUND)


def _accepted(headers: Sequence[str]) -> str:
    """The media types that the peer takes, of all its Accept headers."""
    pairs = (header.partition(":") for header in headers)
    return ",".join(value.strip() for name, _, value in pairs if name.strip().lower() == "accept")
