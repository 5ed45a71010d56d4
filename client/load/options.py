"""What every `tickring bench` scenario is told, and what a flow is made of."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.client import MAX_TIMEOUT_S
from client.load.arrivals import Arrivals, parse_arrivals
from client.load.flows import STREAM, UNARY, Server
from client.priority import parse_priority

MAX_ROWS = 4096
MAX_IN_FLIGHT = 100_000


class BadFlow(ValueError):
    """A flow that cannot be; says what is allowed."""


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """A flow before its requests are made: `model` and `version` as the server routes them; see `Flow`."""

    name: str = "load"
    model: str = ""
    version: str = ""
    priority: str | None = None
    timeout_s: float | None = None
    rows: int = 1
    mode: str = UNARY
    connections: int = 1
    arrivals: Arrivals | None = None
    in_flight: int = 0
    bypass_batching: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """Of a whole scenario. `inputs` are `NAME=FILE` or `FILE`; none: numbers are drawn."""

    server: Server
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    processes: int = 1
    warm_up_s: float = 1.0
    seed: int = 0
    max_lag_ms: float = 10.0
    folder: Path | None = None
    as_json: bool = False


def parse_flow(text: str, base: FlowSpec) -> FlowSpec:
    """`KEY=VALUE KEY=VALUE …`; what is not said is as in `base`. Raises `BadFlow`."""
    spec = replace(base, arrivals=None, in_flight=0)
    for part in text.split():
        key, equals, value = part.partition("=")
        if not equals or key not in _KEYS:
            raise BadFlow(f"{part!r} in flow {text!r}: allowed are {', '.join(f'{key}=' for key in _KEYS)}")
        spec = _KEYS[key](spec, value, text)
    if (spec.arrivals is None) == (spec.in_flight == 0):
        raise BadFlow(f"flow {text!r} needs either rate= or in_flight=")
    if spec.name == base.name and spec.priority:
        spec = replace(spec, name=spec.priority)
    return spec


def _named(spec: FlowSpec, value: str, text: str) -> FlowSpec:
    if not re.fullmatch(r"[\w. -]{1,40}", value):
        raise BadFlow(f"{value!r} in flow {text!r}: a name has up to 40 letters, digits, '.', '_' and '-'")
    return replace(spec, name=value)


def _prioritised(spec: FlowSpec, value: str, text: str) -> FlowSpec:
    parse_priority(value)
    return replace(spec, priority=value)


def _moded(spec: FlowSpec, value: str, text: str) -> FlowSpec:
    if value not in (UNARY, STREAM):
        raise BadFlow(f"{value!r} in flow {text!r}: allowed are {UNARY} and {STREAM}")
    return replace(spec, mode=value)


def _timed(spec: FlowSpec, value: str, text: str) -> FlowSpec:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise BadFlow(
            f"timeout={value} in flow {text!r}: allowed are seconds, over 0 and up to {MAX_TIMEOUT_S:g}"
        )
    return replace(spec, timeout_s=seconds)


def _whole(value: str, text: str, highest: int) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= highest:
        raise BadFlow(f"{value!r} in flow {text!r}: allowed are whole numbers from 1 to {highest}")
    return int(value)


_KEYS: Mapping[str, Callable[[FlowSpec, str, str], FlowSpec]] = {
    "name": _named,
    "rate": lambda spec, value, _: replace(spec, arrivals=parse_arrivals(value)),
    "in_flight": lambda spec, value, text: replace(spec, in_flight=_whole(value, text, MAX_IN_FLIGHT)),
    "priority": _prioritised,
    "timeout": _timed,
    "rows": lambda spec, value, text: replace(spec, rows=_whole(value, text, MAX_ROWS)),
    "mode": _moded,
    "connections": lambda spec, value, text: replace(spec, connections=_whole(value, text, 1000)),
    "model": lambda spec, value, _: replace(spec, model=value),
    "version": lambda spec, value, _: replace(spec, version=value),
}
