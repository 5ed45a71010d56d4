"""What an HTTP path of the service answers."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        kind: its media type.
        headers: further ones, names and values.
    """

    body: bytes
    kind: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = ()

    def head(self) -> bytes:
        """Status line and headers."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.kind}",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers),
            "Connection: close",
        ]
        return "\r\n".join((*lines, "", "")).encode("latin-1")


# Answers a path; given is what stands behind its "?", empty where nothing does.
Route = Callable[[str], Awaitable[Reply]]


def text(body: str, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """Plain text."""
    return Reply(body.encode(), status=status)


def as_json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """One JSON value, for programs; nobody may keep it. Raises ValueError for NaN and Inf."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Reply(f"{body}\n".encode(), JSON, status, (("Cache-Control", "no-store"),))
