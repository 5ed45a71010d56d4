"""Calls of AdminService over a channel, and how they end."""

from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from server.rpc.admin import SERVICE
from server.status import DETAILS_TRAILER
from tickring.v1 import admin_pb2

Code = grpc.StatusCode
DEADLINE_S = 20.0
METHODS = tuple(admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name)


class Caller:
    """Calls AdminService by names."""

    def __init__(
        self, channel: grpc.aio.Channel, token: str | None = None, *, timeout_s: float = DEADLINE_S
    ) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def start(self, method: str, **fields: Any) -> Any:
        """One call that goes on."""
        request = getattr(admin_pb2, f"{method}Request")
        response = getattr(admin_pb2, f"{method}Response")
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
        )
        return call(request(**fields), timeout=self._timeout_s, metadata=self._metadata)

    async def __call__(self, method: str, **fields: Any) -> Any:
        return await self.start(method, **fields)

    async def ending(self, method: str) -> tuple[Code, str]:
        """Status and text of a call with an empty message."""
        try:
            await self(method)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return Code.OK, ""

    async def refused(self, method: str, **fields: Any) -> "Refusal":
        """How a call ended that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self(method, **fields)
        return Refusal(failed.value)


class Refusal:
    """A status and its details."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        trailers: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
        self._status = Status.FromString(trailers.get(DETAILS_TRAILER, b""))

    @property
    def info(self) -> tuple[str, dict[str, str]]:
        """Reason and metadata of the ErrorInfo."""
        info = self._detail(error_details_pb2.ErrorInfo())
        assert info.domain == "tickring"
        return info.reason, dict(info.metadata)

    @property
    def violations(self) -> list[tuple[str, str]]:
        """Field and description of each."""
        return [
            (v.field, v.description) for v in self._detail(error_details_pb2.BadRequest()).field_violations
        ]

    def _detail(self, kind: Any) -> Any:
        assert any(detail.Unpack(kind) for detail in self._status.details), self._status
        return kind


def updates(**values: str | None) -> list[admin_pb2.SettingUpdate]:
    """None takes back."""
    return [admin_pb2.SettingUpdate(path=path, value=value) for path, value in values.items()]
