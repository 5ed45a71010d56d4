"""The five priority classes and the names a caller may use for them."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from client.errors import invalid
from tickring.v1 import types_pb2


class Priority(IntEnum):
    """How urgent a request is, most urgent first; the values are those of the wire."""

    REAL_TIME_TRADING = 1
    MARKET_DATA_UPDATE = 2
    BATCH_PROCESSING = 3
    HISTORICAL_ANALYSIS = 4
    BACKGROUND_TASKS = 5


ALIASES: Mapping[str, Priority] = MappingProxyType(
    {
        "high": Priority.REAL_TIME_TRADING,
        "normal": Priority.BATCH_PROCESSING,
        "low": Priority.BACKGROUND_TASKS,
    }
)

_WIRE = {
    Priority.REAL_TIME_TRADING: types_pb2.PRIORITY_REAL_TIME_TRADING,
    Priority.MARKET_DATA_UPDATE: types_pb2.PRIORITY_MARKET_DATA_UPDATE,
    Priority.BATCH_PROCESSING: types_pb2.PRIORITY_BATCH_PROCESSING,
    Priority.HISTORICAL_ANALYSIS: types_pb2.PRIORITY_HISTORICAL_ANALYSIS,
    Priority.BACKGROUND_TASKS: types_pb2.PRIORITY_BACKGROUND_TASKS,
}
# One look-up per request: names, aliases, "1" to "5" and 1 to 5 (a Priority hashes like its int).
_BY_VALUE: Mapping[str | int | None, types_pb2.Priority] = MappingProxyType(
    {None: types_pb2.PRIORITY_UNSPECIFIED}
    | {member.name.lower(): wire for member, wire in _WIRE.items()}
    | {alias: _WIRE[member] for alias, member in ALIASES.items()}
    | {str(int(member)): wire for member, wire in _WIRE.items()}
    | {int(member): wire for member, wire in _WIRE.items()}
)

ALLOWED = ", ".join([*(name.lower() for name in Priority.__members__), *ALIASES, "1 to 5"])


def parse_priority(value: str | int | None) -> types_pb2.Priority:
    """The wire's number of the class that `value` names; None leaves the choice to the server (unspecified).

    Raises `InvalidRequest` with the allowed names.
    """
    key = value.lower() if isinstance(value, str) else value
    try:
        return _BY_VALUE[key]
    except (KeyError, TypeError):
        raise invalid(f"unknown priority {value!r}; allowed: {ALLOWED}", field="priority") from None
