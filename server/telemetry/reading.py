"""Makes a reading of a service: of what is counted in the arena, and of what the supervisor knows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.books import EngineState
from server.lineup import Lineup
from server.telemetry import names
from server.telemetry.totals import BATCH_SIZE_BOUNDS, DURATION_BOUNDS_S, Exemplar, Flow, Histogram, Totals

_NS = 1e9
_CODES: Mapping[int, str] = {int(code.value[0]): code.name for code in grpc.StatusCode}
_LABELS = {member.index: member.label for member in PriorityClass}
_EVERY_CLASS: Mapping[int, str] = {**_LABELS, _ring.NO_CLASS: ""}
# How a request of a known model can end, and one of none: there from the start, so that the first of a kind
# is seen as one more. Other codes are there once they were counted.
_USUAL = frozenset(
    {
        "OK",
        "CANCELLED",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "UNAVAILABLE",
        "INTERNAL",
    }
)
_USUAL_OF_NONE = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
    }
)
_NONE: Flow = ("", "")


@dataclass(frozen=True)
class Known:
    """What the supervisor knows beside the arena.

    Attributes:
        lineup: what is served.
        engines: by index, those that are there.
        up: 1 or 0, by process.
        restarts: by process.
        readings: of host, processes, GPUs and tracing: by metric name and label.
    """

    lineup: Lineup
    engines: Mapping[int, EngineState]
    up: Mapping[str, int]
    restarts: Mapping[str, int]
    readings: Mapping[tuple[str, str], float]


def read(arena: Arena, known: Known, at_s: float) -> Totals:
    """A reading, made now. Nothing stops meanwhile: what belongs together may differ by what is under way."""
    native = arena.native
    requests = _Requests(native)
    for name, row in _rows(known.lineup):
        requests.read(name, row)
    compute_s, batch_size, padding = _batches(native, known.lineup)
    ended = [native.frontend_stats(frontend)["ended"] for frontend in range(native.frontends)]
    return Totals(
        at_s,
        requests=requests.by_code,
        request_s=requests.request_s,
        exemplars=requests.exemplars,
        queue_wait_s=requests.queue_wait_s,
        compute_s=compute_s,
        batch_size=batch_size,
        padding=padding,
        shed=requests.shed,
        expired=sum(each[Outcome.EXPIRED] for each in ended),
        cancelled=sum(each[Outcome.CANCELLED] for each in ended),
        depth=_depth(native, known),
        target=_target(native, known),
        in_flight_batches=_in_flight(native, known.engines),
        slots_free={f"frontend-{each}": native.free_slots(each) for each in range(native.frontends)},
        up=known.up,
        restarts=known.restarts,
        model_ready=_ready(known),
        readings=known.readings,
    )


def _rows(lineup: Lineup) -> Iterable[tuple[str, int]]:
    yield from lineup.rows.items()
    if len(lineup.rows) == _ring.MAX_MODELS:
        yield names.OTHER, _ring.OTHER_MODELS
    yield "", _ring.NO_MODEL


@dataclass
class _Requests:
    """What the front ends have counted, model by model."""

    native: _ring.Arena
    by_code: dict[tuple[str, str, str], int] = field(default_factory=dict)
    shed: dict[tuple[str, str, str], int] = field(default_factory=dict)
    request_s: dict[Flow, Histogram] = field(default_factory=dict)
    queue_wait_s: dict[Flow, Histogram] = field(default_factory=dict)
    exemplars: dict[Flow, Mapping[int, Exemplar]] = field(default_factory=dict)

    def read(self, model: str, row: int) -> None:
        """All classes of one model."""
        for index, label in _EVERY_CLASS.items():
            flow = (model, label)
            found = self.native.request_counts(row, index)
            self._ends(flow, found)
            if model and label:
                self.request_s[flow] = _durations(found["request"], found["request_ns"])
                self.queue_wait_s[flow] = _durations(found["queue_wait"], found["queue_wait_ns"])
                self.exemplars[flow] = _exemplars(found["exemplars"])

    def _ends(self, flow: Flow, found: Mapping[str, Any]) -> None:
        usual = _usual(flow)
        for code, count in enumerate(found["codes"]):
            if count or _CODES[code] in usual:
                self.by_code[*flow, _CODES[code]] = count
        for reason, count in zip(names.SHED_REASONS, found["shed"], strict=False):
            if count or usual:
                self.shed[*flow, reason] = count


def _usual(flow: Flow) -> frozenset[str]:
    if flow == _NONE:
        return _USUAL_OF_NONE
    return _USUAL if all(flow) else frozenset()


def _exemplars(found: Iterable[tuple[int, bytes, int, int]]) -> dict[int, Exemplar]:
    return {
        bucket: Exemplar(trace_id.hex(), value_ns / _NS, at_ns / _NS)
        for bucket, trace_id, value_ns, at_ns in found
    }


def _durations(counts: Iterable[int], total_ns: int) -> Histogram:
    return Histogram(DURATION_BOUNDS_S, tuple(counts), total_ns / _NS)


def _batches(
    native: _ring.Arena, lineup: Lineup
) -> tuple[dict[tuple[str, int], Histogram], dict[str, Histogram], dict[str, int]]:
    compute_s, sizes, padding = {}, {}, {}
    for name, row in _rows(lineup):
        if not name:
            continue
        found = native.batch_counts(row)
        sizes[name] = Histogram(BATCH_SIZE_BOUNDS, tuple(found["sizes"]), float(found["rows"]))
        padding[name] = found["padding"]
        for bucket, counts, total_ns in found["compute"]:
            compute_s[name, bucket] = _durations(counts, total_ns)
    return compute_s, sizes, padding


def _depth(native: _ring.Arena, known: Known) -> dict[Flow, int]:
    depth = Counter({(name, label): 0 for name in known.lineup.rows for label in _LABELS.values()})
    places = {seat.place: seat.manifest.name for seat in known.lineup.seats}
    for index, engine in known.engines.items():
        for seat in engine.lineup.seats:  # one that retires may have what is served no more
            places.setdefault(seat.place, seat.manifest.name)
            for cls, label in _LABELS.items():
                depth[seat.manifest.name, label] += native.depth(index, seat.place, cls)
    for place, name in places.items():
        for cls, label in _LABELS.items():
            depth[name, label] += native.held(place, cls)
    return dict(depth)


def _target(native: _ring.Arena, known: Known) -> dict[str, int]:
    """The largest of any version and engine."""
    target = dict.fromkeys(known.lineup.rows, 0)
    for seat in known.lineup.seats:
        found = [native.forecast(engine, seat.place)["target"] for engine in known.engines]
        target[seat.manifest.name] = max([target.get(seat.manifest.name, 0), *found])
    return target


def _in_flight(native: _ring.Arena, engines: Mapping[int, EngineState]) -> dict[str, int]:
    batches = Counter({engine.device: 0 for engine in engines.values()})
    for index, engine in engines.items():
        if engine.ready:  # what one that died has published says nothing
            batches[engine.device] += native.in_flight(index)
    return dict(batches)


def _ready(known: Known) -> dict[Flow, int]:
    serving = {
        (seat.place, seat.identity)
        for engine in known.engines.values()
        if engine.ready
        for seat in engine.lineup.seats
    }
    return {
        (seat.manifest.name, str(seat.version.version)): int((seat.place, seat.identity) in serving)
        for seat in known.lineup.seats
    }
