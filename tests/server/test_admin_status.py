"""The books as GetStatus tells them: nothing is left out, and nothing becomes something else."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.books import EngineState, books
from server.rpc.admin_status import status_message
from tests.server.admin_world import LINEUP
from tests.server.world import FrontEnd, request
from tickring.v1 import admin_pb2, types_pb2

READINGS = {"gpu_utilization_ratio": 0.5, "gpu_memory_used_bytes": 3e9}


def status(front_end: FrontEnd) -> tuple[dict[str, Any], admin_pb2.GetStatusResponse]:
    """The books, and the message that they become."""
    engine = EngineState("cuda:1", True, READINGS, LINEUP)
    found = books(front_end.arena, {0: engine}, {"frontend-0": 1, "engine-0": 2})
    return found, status_message(found, {}, settings_version=3, uptime_ns=5)


def test_counts_are_those_of_the_books(front_end: FrontEnd) -> None:
    """Each by its name, of work that has ended in several ways and of some that has not."""
    front_end.submit(request(4))
    front_end.complete(Outcome.RESULT, Outcome.ERROR, Outcome.NON_FINITE, Outcome.RESULT)
    front_end.submit(request(2)).cancel()
    front_end.complete(Outcome.RESULT)
    front_end.submit(request(3))
    slots = np.empty(2, np.uint32)
    front_end.engine.take(0, 0, 0, slots)
    front_end.engine.complete(slots, np.ones(2, np.uint8), 0, 0, 0, 1, 2)
    found, message = status(front_end)
    assert (message.uptime_ns, message.settings_version) == (5, 3)

    (expected,), (frontend,) = found["frontends"], message.frontends
    assert (frontend.name, frontend.restarts) == ("frontend-0", 1)
    assert (frontend.admitted, frontend.open, frontend.undelivered, frontend.slots_free) == (9, 3, 2, 13)
    ended = {name: getattr(frontend.ended, name) for name in expected["ended"]}
    assert ended == expected["ended"]
    assert ended == {"result": 2, "error": 1, "non_finite": 1, "expired": 0, "cancelled": 2, "lost": 0}

    (expected,), (engine,) = found["engines"], message.engines
    assert (engine.name, engine.device, engine.ready, engine.restarts) == ("engine-0", "cuda:1", True, 2)
    assert dict(engine.readings) == READINGS
    for name in ("taken", "completed", "lost", "discarded", "batches", "corrupt", "waiting"):
        assert getattr(engine, name) == expected[name], name
    assert (engine.waiting, engine.completed) == (1, 6)


def test_every_field_of_a_process_is_filled(front_end: FrontEnd) -> None:
    """None is forgotten, nor one added to the messages later, and none has the number of another."""
    found, _ = status(front_end)
    expected: dict[int, dict[str, int]] = {}
    for entry in (found["frontends"][0], found["frontends"][0]["ended"], found["engines"][0]):
        counts = [name for name, value in entry.items() if type(value) is int]
        entry.update({name: 100 * (len(expected) + 1) + index for index, name in enumerate(counts)})
        expected[id(entry)] = {name: entry[name] for name in counts}
    message = status_message(found, {}, settings_version=1, uptime_ns=0)
    (frontend,), (engine,) = message.frontends, message.engines
    made: list[Message] = [frontend, frontend.ended, engine]
    for part, counts_of_part in zip(made, expected.values(), strict=True):
        assert {name: getattr(part, name) for name in counts_of_part} == counts_of_part
        assert [field.name for field in part.DESCRIPTOR.fields if not getattr(part, field.name)] == []


def test_model_is_told_with_queues_and_forecast(front_end: FrontEnd) -> None:
    """Every class in its order; times in nanoseconds, buckets ascending."""
    front_end.submit(request(3))
    front_end.submit(request(2, priority=PriorityClass.BACKGROUND_TASKS.value))
    front_end.engine.publish_forecast(
        0, 8, 1_500, [1, 8], [1_000_000, 2_500_001], [1_200_000, 4_000_003], [1, 2]
    )
    ((model,),) = [engine.models for engine in status(front_end)[1].engines]
    assert (model.model_name, model.model_version) == ("pair", "3")
    assert (model.target_size, model.item_ns) == (8, 1_500)
    assert [(q.priority, q.items) for q in model.queued] == [
        (types_pb2.PRIORITY_REAL_TIME_TRADING, 0),
        (types_pb2.PRIORITY_MARKET_DATA_UPDATE, 0),
        (types_pb2.PRIORITY_BATCH_PROCESSING, 3),
        (types_pb2.PRIORITY_HISTORICAL_ANALYSIS, 0),
        (types_pb2.PRIORITY_BACKGROUND_TASKS, 2),
    ]
    assert [(b.bucket, b.median_ns, b.high_ns) for b in model.latency] == [
        (1, 1_000_000, 1_200_000),
        (8, 2_500_001, 4_000_003),
    ]


@pytest.mark.parametrize(("open_items", "told"), [(-2, 0), (0, 0), (7, 7)])
def test_books_that_were_read_while_work_ended(front_end: FrontEnd, open_items: int, told: int) -> None:
    """More may have ended than were admitted a moment before; that is no number below zero."""
    found, _ = status(front_end)
    found["frontends"][0]["open"] = open_items
    assert status_message(found, {}, settings_version=1, uptime_ns=0).frontends[0].open == told


def test_every_outcome_has_its_field() -> None:
    """By name."""
    fields = [field.name for field in admin_pb2.EndedItems.DESCRIPTOR.fields]
    assert fields == [outcome.name.lower() for outcome in Outcome]
