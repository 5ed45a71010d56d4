"""The books of a service, in numbers that add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.books import EngineState, books
from server.lineup import Lineup, Seat
from server.repository import Manifest, ModelVersion
from tests.server.world import SIGNATURE, FrontEnd, request

VERSION = ModelVersion(3, Path("pair/3/model.pt"), "a" * 64)
MANIFEST = Manifest(
    "pair", "", "torchscript", "fp32", True, True, SIGNATURE.inputs, SIGNATURE.outputs, (VERSION,)
)
LINEUP = Lineup((MANIFEST,), (Seat(0, MANIFEST, VERSION),), None)
LOW = PriorityClass.BACKGROUND_TASKS


def read(front_end: FrontEnd) -> dict[str, Any]:
    """As `/status` gives them: through JSON."""
    found: dict[str, Any] = json.loads(
        json.dumps(books(front_end.arena, {0: EngineState("cpu", True, {}, LINEUP)}, {"engine-0": 2}))
    )
    return found


def test_nothing_has_happened_yet(front_end: FrontEnd) -> None:
    """Every name is there from the start, so that a reader needs no cases."""
    found = read(front_end)
    assert found == {
        "frontends": [
            {
                "name": "frontend-0",
                "admitted": 0,
                "ended": dict.fromkeys(["result", "error", "non_finite", "expired", "cancelled", "lost"], 0),
                "open": 0,
                "slots_free": 16,
                "undelivered": 0,
                "corrupt": 0,
            }
        ],
        "engines": [
            {
                "name": "engine-0",
                "device": "cpu",
                "ready": True,
                "readings": {},
                **dict.fromkeys(
                    ["taken", "completed", "lost", "discarded", "batches", "corrupt", "waiting"], 0
                ),
                "models": [
                    {
                        "name": "pair",
                        "version": 3,
                        "queued": {member.label: 0 for member in PriorityClass},
                        "target_batch": 0,
                        "item_us": 0,
                        "latency_ms": {},
                    }
                ],
            }
        ],
        "restarts": {"engine-0": 2},
    }


def test_each_engine_has_its_own_books(make_front_end: Callable[..., FrontEnd]) -> None:
    """With its device, and whether it is ready; what one has is not the other's."""
    front_end = make_front_end(engine_count=2)
    front_end.submit(request(3))
    front_end.engines.went(1)
    front_end.submit(request(2))
    readings = {"gpu_utilization_ratio": 0.5}
    states = {
        0: EngineState("cuda:1", True, readings, LINEUP),
        1: EngineState("cpu", False, {}, LINEUP),
    }
    engines = books(front_end.arena, states, {})["engines"]
    assert [(each["name"], each["device"], each["ready"]) for each in engines] == [
        ("engine-0", "cuda:1", True),
        ("engine-1", "cpu", False),
    ]
    assert [each["readings"] for each in engines] == [readings, {}]
    assert [each["waiting"] for each in engines] == [2, 3]
    assert [each["models"][0]["queued"]["batch_processing"] for each in engines] == [2, 3]


def test_items_are_counted_from_admission_to_their_end(front_end: FrontEnd) -> None:
    """Queued, ended one way or another, and lost with an engine."""
    front_end.submit(request(3))
    front_end.submit(request(2, priority=LOW.value))
    found = read(front_end)
    assert (found["frontends"][0]["admitted"], found["frontends"][0]["open"]) == (5, 5)
    assert found["engines"][0]["waiting"] == 5
    queued = found["engines"][0]["models"][0]["queued"]
    assert {name: depth for name, depth in queued.items() if depth} == {
        "batch_processing": 3,
        "background_tasks": 2,
    }

    front_end.complete(Outcome.RESULT, Outcome.ERROR, Outcome.NON_FINITE, Outcome.RESULT)
    front_end.submit(request(2)).cancel()
    front_end.complete(Outcome.RESULT)
    front_end.submit(request(4))
    front_end.partition.lose_engine(0)
    front_end.arena.native.reset_engine(0)
    found = read(front_end)
    (frontend,), (engine,) = found["frontends"], found["engines"]
    assert frontend["ended"] == {
        "result": 3,
        "error": 1,
        "non_finite": 1,
        "expired": 0,
        "cancelled": 2,
        "lost": 4,
    }
    assert (frontend["admitted"], frontend["open"], engine["waiting"]) == (11, 0, 0)
    assert (engine["taken"], engine["completed"], engine["lost"]) == (5, 5, 0)


def test_what_was_held_and_left_is_in_the_books(front_end: FrontEnd) -> None:
    """Admitted and cancelled, without any engine."""
    front_end.hold_all_but_two()
    for _ in range(2):
        front_end.submit(request(priority=LOW.value))
    held = front_end.submit(request(2, priority=LOW.value))
    (frontend,) = read(front_end)["frontends"]
    assert (frontend["admitted"], frontend["open"], frontend["slots_free"]) == (2, 2, 12)
    held.cancel()
    (frontend,) = read(front_end)["frontends"]
    assert (frontend["admitted"], frontend["ended"]["cancelled"], frontend["open"]) == (4, 2, 2)
    assert frontend["slots_free"] == 14


def test_completions_that_nobody_has_fetched_are_told(front_end: FrontEnd) -> None:
    """They have ended for the engine, and not yet for their front end."""
    front_end.submit(request(2))
    slots = np.empty(2, np.uint32)
    front_end.engine.take(0, 0, 0, slots)
    front_end.engine.complete(slots, np.ones(2, np.uint8), 0, 0, 0, 1, 2)
    found = read(front_end)
    assert (found["frontends"][0]["undelivered"], found["frontends"][0]["open"]) == (2, 2)
    assert (found["engines"][0]["completed"], found["engines"][0]["batches"]) == (2, 1)
    front_end.partition.drain()
    assert read(front_end)["frontends"][0]["undelivered"] == 0


def test_predictions_are_those_of_the_engine(front_end: FrontEnd) -> None:
    """In milliseconds by bucket, and what an item costs in microseconds."""
    front_end.engine.publish_forecast(
        0, 8, 1_500, [1, 8], [1_000_000, 2_500_000], [1_200_000, 4_000_000], [1, 2]
    )
    model = read(front_end)["engines"][0]["models"][0]
    assert (model["target_batch"], model["item_us"]) == (8, 1.5)
    assert model["latency_ms"] == {"1": {"median": 1.0, "high": 1.2}, "8": {"median": 2.5, "high": 4.0}}
