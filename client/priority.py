"""The five priority classes and the names a caller may use for them."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from client.errors import InvalidRequest, error_for
from tickring.v1 import types_pb2


class Priority(IntEnum):
    """How urgent a request is, most urgent first; the values are those of the wire."""

    REAL_TIME_TRADING = int(types_pb2.PRIORITY_REAL_TIME_TRADING)
    MARKET_DATA_UPDATE = int(types_pb2.PRIORITY_MARKET_DATA_UPDATE)
    BATCH_PROCESSING = int(types_pb2.PRIORITY_BATCH_PROCESSING)
    HISTORICAL_ANALYSIS = int(types_pb2.PRIORITY_HISTORICAL_ANALYSIS)
    BACKGROUND_TASKS = int(types_pb2.PRIORITY_BACKGROUND_TASKS)


ALIASES: Mapping[str, Priority] = MappingProxyType(
    {
        "high": Priority.REAL_TIME_TRADING,
        "normal": Priority.BATCH_PROCESSING,
        "low": Priority.BACKGROUND_TASKS,
    }
)

# One look-up per request: names, aliases, "1" to "5" and 1 to 5 (a Priority hashes like its int).
_BY_VALUE: Mapping[str | int | None, Priority | None] = MappingProxyType(
    {None: None}
    | {name.lower(): member for name, member in Priority.__members__.items()}
    | dict(ALIASES)
    | {str(int(member)): member for member in Priority}
    | {int(member): member for member in Priority}
)

ALLOWED = ", ".join([*(name.lower() for name in Priority.__members__), *ALIASES, "1 to 5"])


def parse_priority(value: str | int | None) -> Priority | None:
    """The class that `value` names (any case, alias or number); None leaves the choice to the server.

    Raises `InvalidRequest` with the allowed names.
    """
    key = value.lower() if isinstance(value, str) else value
    try:
        return _BY_VALUE[key]
    except (KeyError, TypeError):
        raise unknown_priority(value) from None


def unknown_priority(value: object) -> InvalidRequest:
    """The error that names `value` and what is allowed instead."""
    error = error_for("INVALID_ARGUMENT", f"unknown priority {value!r}; allowed: {ALLOWED}", field="priority")
    assert isinstance(error, InvalidRequest)
    return error
