"""How each expected end is told over gRPC, held against the contract's table."""

from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from scheduler import errors
from server import administration, auth
from server.problems import Problem, SettingsError
from server.status import DETAILS_TRAILER, MAX_TEXT, abort, code_of, to_status

Code = grpc.StatusCode
ENDS: list[tuple[errors.RequestError, Code, str, list[type[Message]]]] = [
    (
        errors.InvalidRequest("inputs[0].shape", "x is [], allowed is [n]"),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        [error_details_pb2.BadRequest],
    ),
    (errors.UnknownModel("no model 'a'"), Code.NOT_FOUND, "MODEL_NOT_FOUND", []),
    (
        errors.UnknownModel("no version '2'", reason="VERSION_NOT_FOUND"),
        Code.NOT_FOUND,
        "VERSION_NOT_FOUND",
        [],
    ),
    (errors.ModelNotReady("a is loading"), Code.FAILED_PRECONDITION, "MODEL_NOT_READY", []),
    (
        errors.Overloaded("class:real_time_trading", "full", 0.25),
        Code.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        [error_details_pb2.RetryInfo, error_details_pb2.QuotaFailure],
    ),
    (
        errors.DeadlineMissed("too late", reason="EXPIRED_IN_QUEUE"),
        Code.DEADLINE_EXCEEDED,
        "EXPIRED_IN_QUEUE",
        [],
    ),
    (
        errors.DeadlineMissed("never", reason="DEADLINE_UNREACHABLE"),
        Code.DEADLINE_EXCEEDED,
        "DEADLINE_UNREACHABLE",
        [],
    ),
    (errors.RequestCancelled("the caller left"), Code.CANCELLED, "", []),
    (
        errors.Unavailable("draining", reason="DRAINING", retry_after_s=1.5),
        Code.UNAVAILABLE,
        "DRAINING",
        [error_details_pb2.RetryInfo],
    ),
    (errors.ModelFailed("it raised", reason="MODEL_ERROR"), Code.INTERNAL, "MODEL_ERROR", []),
    (errors.ModelFailed("NaN", reason="NON_FINITE_OUTPUT"), Code.INTERNAL, "NON_FINITE_OUTPUT", []),
    (
        auth.Unauthenticated("this server takes calls with a token", reason="TOKEN_MISSING"),
        Code.UNAUTHENTICATED,
        "TOKEN_MISSING",
        [],
    ),
    (
        auth.PermissionDenied("a has predict", reason="ROLE_MISSING"),
        Code.PERMISSION_DENIED,
        "ROLE_MISSING",
        [],
    ),
    (
        administration.InvalidSettings(SettingsError([Problem("slo.p50_ms", -1, "must be at least 0")])),
        Code.INVALID_ARGUMENT,
        "INVALID_SETTINGS",
        [error_details_pb2.BadRequest],
    ),
    (administration.NeedsRestart(["server.host"]), Code.FAILED_PRECONDITION, "NEEDS_RESTART", []),
    (administration.VersionConflict(2, 3), Code.ABORTED, "SETTINGS_CHANGED", []),
    (administration.CannotLoad("a has no file"), Code.FAILED_PRECONDITION, "CANNOT_LOAD", []),
    (administration.CannotUnload("a is the last"), Code.FAILED_PRECONDITION, "CANNOT_UNLOAD", []),
]


def unpacked(status: Status) -> dict[type[Message], Any]:
    """The details by type; fails when there are two of one."""
    kinds: list[type[Message]] = [
        error_details_pb2.BadRequest,
        error_details_pb2.ErrorInfo,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
    ]
    found: dict[type[Message], Any] = {}
    for detail in status.details:
        (kind,) = (kind for kind in kinds if detail.Is(kind.DESCRIPTOR))
        assert kind not in found
        found[kind] = kind()
        detail.Unpack(found[kind])
    return found


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    """All below it."""
    for subclass in kind.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


@pytest.mark.parametrize(("error", "code", "reason", "others"), ENDS, ids=lambda part: type(part).__name__)
def test_an_end_has_its_code_and_details(
    error: errors.RequestError, code: Code, reason: str, others: list[type[Message]]
) -> None:
    """Code, text, ErrorInfo of our domain, and what else the contract promises; nothing more."""
    status = to_status(error)
    assert code_of(error) is code
    assert (status.code, status.message) == (code.value[0], str(error))
    details = unpacked(status)
    info = details.pop(error_details_pb2.ErrorInfo, None)
    assert (info.reason, info.domain) == (reason, "tickring") if reason else info is None
    assert details.keys() == set(others)


def test_every_end_is_in_the_table() -> None:
    """A new class of errors needs a code."""
    assert set(subclasses(errors.RequestError)) == {type(error) for error, *_ in ENDS}


def test_details_say_what_is_wrong_where_and_when_to_come_back() -> None:
    """Field and description, subject and description, delay."""
    (violation,) = unpacked(to_status(errors.InvalidRequest("a.b", "is c")))[
        error_details_pb2.BadRequest
    ].field_violations
    assert (violation.field, violation.description) == ("a.b", "is c")
    details = unpacked(to_status(errors.Overloaded("slots", "none left", 2.005)))
    (violation,) = details[error_details_pb2.QuotaFailure].violations
    assert (violation.subject, violation.description) == ("slots", "none left")
    delay = details[error_details_pb2.RetryInfo].retry_delay
    assert (delay.seconds, delay.nanos // 10**6) == (2, 5)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("output_names[0]", "x" * 10_000),
        errors.UnknownModel("x" * 10_000),
        errors.Overloaded("slots", "x" * 10_000, 1),
        administration.CannotLoad("x" * 10_000),
        administration.NeedsRestart(["x" * 10_000]),
        administration.InvalidSettings(SettingsError([Problem("x" * 1_000, "x" * 100, "x" * 10_000)])),
    ],
    ids=lambda error: type(error).__name__,
)
def test_long_text_is_cut(error: errors.RequestError) -> None:
    """So that the trailers stay far below what a client takes; what is cut says so."""
    status = to_status(error)
    assert len(status.message) == MAX_TEXT + 1
    assert status.message.endswith("x…")
    assert status.ByteSize() < 4096


def test_settings_with_many_mistakes() -> None:
    """Every mistake that fits is told, and the size stays far below what a client takes."""
    problems = [Problem(f"slo.number_{number}", number, "is no setting") for number in range(1000)]
    status = to_status(administration.InvalidSettings(SettingsError(problems)))
    violations = unpacked(status)[error_details_pb2.BadRequest].field_violations
    assert 10 < len(violations) < 100
    assert [v.field for v in violations] == [problem.path for problem in problems[: len(violations)]]
    assert violations[7].description == "7: is no setting"
    assert status.ByteSize() < 4096


async def test_abort_sends_code_text_and_details() -> None:
    """Over a real socket: what a client reads is the status."""
    error = errors.Unavailable("é is draining", reason="DRAINING", retry_after_s=1)

    async def refuse(_request: bytes, context: Any) -> bytes:
        await abort(context, error)

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("t.T", {"T": grpc.unary_unary_rpc_method_handler(refuse)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/t.T/T", None, None)(b"")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    await server.stop(None)
    assert (raised.value.code(), raised.value.details()) == (Code.UNAVAILABLE, "é is draining")
    trailers: dict[str, Any] = dict(raised.value.trailing_metadata() or ())  # type: ignore[arg-type]
    assert Status.FromString(trailers[DETAILS_TRAILER]) == to_status(error)
