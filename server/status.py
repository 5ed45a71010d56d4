"""How each expected end of a request is told over gRPC: one table, used by unary calls and streams.

Codes and details follow the error model of google.rpc (googleapis, `google/rpc/error_details.proto`).
"""

from collections.abc import Callable, Sequence
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from scheduler import errors
from server import administration, auth
from server.problems import shown

DOMAIN = "tickring"
# Where gRPC carries a serialised google.rpc.Status beside the plain code and message.
DETAILS_TRAILER = "grpc-status-details-bin"
# The text travels three times, and a client that gets more than 8 kB of trailers may drop them all and
# say RESOURCE_EXHAUSTED instead. Only what lists many names comes near.
MAX_TEXT = 1024


def _info(reason: str, **metadata: str) -> details.ErrorInfo:
    return details.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _retry(after_s: float) -> details.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(after_s * 1e9))
    return details.RetryInfo(retry_delay=delay)


def _invalid(error: errors.InvalidRequest) -> Sequence[Message]:
    violation = details.BadRequest.FieldViolation(field=error.field, description=_cut(error.description))
    return [details.BadRequest(field_violations=[violation]), _info("INVALID_REQUEST")]


def _overloaded(error: errors.Overloaded) -> Sequence[Message]:
    violation = details.QuotaFailure.Violation(subject=error.subject, description=_cut(str(error)))
    return [
        _retry(error.retry_after_s),
        details.QuotaFailure(violations=[violation]),
        _info("QUEUE_FULL"),
    ]


def _unavailable(error: errors.Unavailable) -> Sequence[Message]:
    return [_retry(error.retry_after_s), _info(error.reason)]


def _bad_settings(error: administration.InvalidSettings) -> Sequence[Message]:
    # As many as fit, the first in any case: the message has been cut as well.
    violations: list[details.BadRequest.FieldViolation] = []
    room = MAX_TEXT
    for problem in error.problems:
        violation = details.BadRequest.FieldViolation(
            field=_cut(problem.path), description=_cut(f"{shown(problem.value)}: {problem.allowed}")
        )
        room -= len(violation.field) + len(violation.description)
        if violations and room < 0:
            break
        violations.append(violation)
    return [details.BadRequest(field_violations=violations), _info("INVALID_SETTINGS")]


def _needs_restart(error: administration.NeedsRestart) -> Sequence[Message]:
    return [_info("NEEDS_RESTART", paths=_cut(", ".join(error.paths)))]


def _version_conflict(error: administration.VersionConflict) -> Sequence[Message]:
    versions = {"expected_version": str(error.expected), "actual_version": str(error.actual)}
    return [_info("SETTINGS_CHANGED", **versions)]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


_TABLE: dict[type[errors.RequestError], tuple[grpc.StatusCode, Callable[..., Sequence[Message]]]] = {
    errors.InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, _invalid),
    errors.UnknownModel: (grpc.StatusCode.NOT_FOUND, lambda error: [_info(error.reason)]),
    errors.ModelNotReady: (grpc.StatusCode.FAILED_PRECONDITION, lambda _: [_info("MODEL_NOT_READY")]),
    errors.Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, _overloaded),
    errors.DeadlineMissed: (grpc.StatusCode.DEADLINE_EXCEEDED, lambda error: [_info(error.reason)]),
    errors.RequestCancelled: (grpc.StatusCode.CANCELLED, lambda _: []),
    errors.Unavailable: (grpc.StatusCode.UNAVAILABLE, _unavailable),
    errors.ModelFailed: (grpc.StatusCode.INTERNAL, lambda error: [_info(error.reason)]),
    auth.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, lambda error: [_info(error.reason)]),
    auth.PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, lambda error: [_info(error.reason)]),
    administration.InvalidSettings: (grpc.StatusCode.INVALID_ARGUMENT, _bad_settings),
    administration.NeedsRestart: (grpc.StatusCode.FAILED_PRECONDITION, _needs_restart),
    administration.VersionConflict: (grpc.StatusCode.ABORTED, _version_conflict),
    administration.CannotLoad: (grpc.StatusCode.FAILED_PRECONDITION, lambda _: [_info("CANNOT_LOAD")]),
    administration.CannotUnload: (grpc.StatusCode.FAILED_PRECONDITION, lambda _: [_info("CANNOT_UNLOAD")]),
}
# Of kinds of errors that do not carry their own.
_REASONS: dict[type[errors.RequestError], str] = {}


def reason_of(error: errors.RequestError) -> str:
    """The reason in the ErrorInfo of this end; empty where it has none."""
    own: str | None = getattr(error, "reason", None)
    if own is not None:
        return own
    kind = type(error)
    if kind not in _REASONS:  # one for all of its kind
        infos = [detail for detail in _TABLE[kind][1](error) if isinstance(detail, details.ErrorInfo)]
        _REASONS[kind] = infos[0].reason if infos else ""
    return _REASONS[kind]


def code_of(error: errors.RequestError) -> grpc.StatusCode:
    """The gRPC code that this end is told as."""
    return _TABLE[type(error)][0]


def to_status(error: errors.RequestError) -> Status:
    """The end of a request as a `google.rpc.Status` with its details."""
    code, detail = _TABLE[type(error)]
    status = Status(code=code.value[0], message=_cut(str(error)))
    for message in detail(error):
        packed = Any()
        packed.Pack(message)
        status.details.append(packed)
    return status


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: errors.RequestError) -> NoReturn:
    """Ends a unary call, or a whole RPC stream, with this error."""
    status = to_status(error)
    await context.abort(code_of(error), status.message, ((DETAILS_TRAILER, status.SerializeToString()),))
    raise AssertionError("unreachable: abort raises")
