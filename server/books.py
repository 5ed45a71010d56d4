"""The books of a running service, read from the arena: what was admitted, how it ended, what is predicted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.arena import Arena
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.lineup import Lineup, Seat


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the supervisor knows of an engine.

    Attributes:
        readings: the newest of its device, by name; empty where nothing is read. See `server.gpu`.
        lineup: what it serves.
    """

    device: str
    ready: bool
    readings: Mapping[str, float]
    lineup: Lineup


def books(arena: Arena, engines: Mapping[int, EngineState], restarts: Mapping[str, int]) -> dict[str, Any]:
    """All of it as JSON values. Nothing stops meanwhile, so sums may differ while work is under way.

    `engines`: by index, those that are there. `restarts`: by child.
    """
    native = arena.native
    return {
        "frontends": [_frontend(arena, index) for index in range(native.frontends)],
        "engines": [_engine(arena, index, engine) for index, engine in engines.items()],
        "restarts": dict(restarts),
    }


def _frontend(arena: Arena, index: int) -> dict[str, Any]:
    stats = arena.native.frontend_stats(index)
    undelivered, _ = arena.native.frontend_progress(index)
    ended = stats["ended"]
    return {
        "name": f"frontend-{index}",
        "admitted": stats["admitted"],
        "ended": {outcome.name.lower(): ended[outcome] for outcome in Outcome},
        "open": stats["admitted"] - sum(ended),
        "undelivered": undelivered,
        "corrupt": stats["corrupt"],
        "slots_free": arena.native.free_slots(index),
    }


def _engine(arena: Arena, index: int, state: EngineState) -> dict[str, Any]:
    native = arena.native
    stats = native.engine_stats(index)
    waiting, _ = native.engine_progress(index)
    return {
        "name": f"engine-{index}",
        "device": state.device,
        "ready": state.ready,
        "readings": dict(state.readings),
        "taken": stats["taken"],
        "completed": stats["completed"],
        "lost": stats["lost"],
        "discarded": stats["discarded"],
        "batches": stats["batches"],
        "corrupt": stats["corrupt"],
        "waiting": waiting,
        "models": [_model(arena, index, seat) for seat in state.lineup.seats],
    }


def _model(arena: Arena, engine: int, seat: Seat) -> dict[str, Any]:
    forecast = arena.native.forecast(engine, seat.place)
    return {
        "name": seat.manifest.name,
        "version": seat.version.version,
        "queued": {c.label: arena.native.depth(engine, seat.place, c.index) for c in PriorityClass},
        "target_batch": forecast["target"],
        "item_us": forecast["item_ns"] / 1e3,
        "latency_ms": {
            str(bucket): {"median": median / 1e6, "high": high / 1e6}
            for bucket, median, high, _ in forecast["buckets"]
        },
    }
