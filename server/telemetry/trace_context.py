"""W3C Trace Context as it comes with a call: whose trace a request belongs to.

What is not as the standard has it (https://www.w3.org/TR/trace-context-2/) is ignored, as it says: an invalid
traceparent is none, and takes its tracestate with it; an invalid tracestate is none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
# The standard asks for 512 at least to be passed on; more than this is dropped as a whole.
MAX_STATE_CHARACTERS = 2048
MAX_STATE_MEMBERS = 32

_PARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 0x01
_KEY = "[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
# Printable ASCII but comma and equals sign, no space at the end.
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})=({_VALUE})")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's span. `sampled`: the caller may have recorded it."""

    trace_id: int
    span_id: int
    sampled: bool


class Origin:
    """Where a request comes from: its RPC method, and the trace that its caller has put it in.

    One for a call that carries a trace, and for each RPC stream that does; all others of a method share one.

    Attributes:
        method: with its service, such as `tickring.v1.InferenceService/Predict`.
        traceparent, tracestate: as they came; empty where none did.
    """

    __slots__ = ("_parent", "_parsed", "method", "traceparent", "tracestate")

    def __init__(self, method: str, traceparent: str = "", tracestate: str = "") -> None:
        self.method = method
        self.traceparent = traceparent
        self.tracestate = tracestate
        self._parsed = not traceparent
        self._parent: Parent | None = None

    @property
    def parent(self) -> Parent | None:
        """The caller's span; None where there is none. Parsed when first asked for."""
        if not self._parsed:
            self._parent = parse_traceparent(self.traceparent)
            self._parsed = True
        return self._parent

    def fields(self) -> dict[str, str]:
        """For a log line about the request: its `trace_id`, where its caller has given it one."""
        return {} if self.parent is None else {"trace_id": f"{self.parent.trace_id:032x}"}


def origin_of(method: str, metadata: Metadata) -> Origin:
    """With the trace that a call's metadata names. More than one traceparent names none."""
    parents, states = [], []
    for name, value in metadata:
        if isinstance(value, str):
            if name == TRACEPARENT:
                parents.append(value)
            elif name == TRACESTATE:
                states.append(value)
    if len(parents) != 1:
        return Origin(method)
    state = ",".join(states)
    return Origin(method, parents[0], state if len(state) <= MAX_STATE_CHARACTERS else "")


def parse_traceparent(text: str) -> Parent | None:
    """None where it is invalid."""
    found = _PARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # Version ff is no version; what later ones add comes after a dash, and 00 has nothing to add.
    if version == "ff" or (version == "00" and more is not None):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))
    return parent if parent.trace_id and parent.span_id else None


def parse_tracestate(text: str) -> list[tuple[str, str]]:
    """Its keys and values in their order; nothing where any of it is invalid."""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    pairs = [(match[1], match[2]) for match in found if match is not None]
    valid = len(pairs) == len(members) == len(dict(pairs)) and len(members) <= MAX_STATE_MEMBERS
    return pairs if valid else []
