"""What a call can end with: one class per row of the error table, built from any form a status comes in."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class PredictionError(Exception):
    """A call that ended without its result.

    `code` is the gRPC status, `message` the server's (or this client's) text, `reason` the
    `ErrorInfo.reason` such as "EXPIRED_IN_QUEUE", `field` the path of the offending request field,
    `retry_after_s` how many seconds the server asks to wait; the last three are None where nothing was said.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        # All arguments go to Exception, so that the error survives pickling between processes.
        super().__init__(code, message, reason, field, retry_after_s)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidRequest(PredictionError, ValueError):
    """INVALID_ARGUMENT: the request is wrong; `field` says where."""


class NotFound(PredictionError):
    """NOT_FOUND: no such model, version or health service."""


class NotReady(PredictionError):
    """FAILED_PRECONDITION: the model is known but does not serve yet; or a change that cannot be made as
    things are, and `reason` says why.
    """


class Overloaded(PredictionError):
    """RESOURCE_EXHAUSTED: a queue or limit is full; `retry_after_s` says when to come back."""


class DeadlineExceeded(PredictionError):
    """DEADLINE_EXCEEDED: no answer in time; `reason` is set where the server found out first."""


class Cancelled(PredictionError):
    """CANCELLED: this client was closed before the call or during it."""


class Unavailable(PredictionError):
    """UNAVAILABLE: server unreachable, draining or restarting. Already retried when a caller sees it."""


class ModelFailed(PredictionError):
    """INTERNAL with a `reason`: MODEL_ERROR or NON_FINITE_OUTPUT, for this request alone."""


class SettingsChanged(PredictionError):
    """ABORTED: the settings of the server are of another version than was expected; read them again."""


class Unauthenticated(PredictionError):
    """UNAUTHENTICATED: no token, or a wrong one."""


class PermissionDenied(PredictionError):
    """PERMISSION_DENIED: known, but not allowed."""


_CLASSES: Mapping[grpc.StatusCode, type[PredictionError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.FAILED_PRECONDITION: NotReady,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.CANCELLED: Cancelled,
        grpc.StatusCode.ABORTED: SettingsChanged,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.INTERNAL: ModelFailed,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    }
)

_CODES: Mapping[int, grpc.StatusCode] = MappingProxyType({code.value[0]: code for code in grpc.StatusCode})


def invalid(message: str, field: str | None = None) -> InvalidRequest:
    """The error for input that never reaches the wire; `message` names the value and what is allowed."""
    return InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, message, field=field)


def from_status(status: status_pb2.Status) -> PredictionError:
    """The error that a `google.rpc.Status` describes, as it comes within an RPC stream."""
    return _build(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details)


def from_rpc_error(error: grpc.aio.AioRpcError) -> PredictionError:
    """The error that an RPC ended with; details come from its `grpc-status-details-bin` trailer."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))  # asks for code, details and trailers only
    except (ValueError, DecodeError):
        # A trailer that contradicts the status or does not parse: the status itself is what counts.
        status = None
    return _build(error.code(), error.details() or "", status.details if status is not None else ())


def _build(code: grpc.StatusCode, message: str, details: Iterable[Any]) -> PredictionError:
    try:
        reason, field, retry_after_s = _read_details(details)
    except DecodeError:
        # One garbled detail must not cost the caller the status, nor a whole RPC stream its reader.
        reason = field = retry_after_s = None
    chosen = _CLASSES.get(code, PredictionError)
    if chosen is ModelFailed and reason is None:
        # Transports and proxies say INTERNAL too; only the server's own carries a reason.
        chosen = PredictionError
    return chosen(code, message, reason, field, retry_after_s)


def _read_details(details: Iterable[Any]) -> tuple[str | None, str | None, float | None]:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in details:
        detail.Unpack(info)  # each takes its own type and leaves the others alone
        detail.Unpack(bad_request)
        if detail.Unpack(retry):
            retry_after_s = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    field = bad_request.field_violations[0].field if bad_request.field_violations else None
    return info.reason or None, field or None, retry_after_s
