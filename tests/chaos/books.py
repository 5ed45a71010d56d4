"""The books of an idle server: every item that was admitted has ended, every slot is free."""

import json
import time
from collections.abc import Mapping
from typing import Any

from tests.chaos.world import SLOTS, World

# From the last answer to the last counter; after a cancellation, until the engine has skipped the items.
SETTLE_S = 5.0
POLL_S = 0.005


def read(world: World) -> dict[str, Any]:
    """GET /status."""
    books: dict[str, Any] = json.loads(world.get("/status"))
    return books


def settled(world: World) -> list[str]:
    """What does not add up once nothing more happens; empty when all does. Polls, for nobody tells."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        problems = imbalances(read(world))
        if not problems or time.monotonic() > deadline:
            return problems
        time.sleep(POLL_S)


def imbalances(books: Mapping[str, Any], slots: int = SLOTS) -> list[str]:
    """What does not add up in the books of a server without work."""
    found = []
    for frontend in books["frontends"]:
        ended = sum(frontend["ended"].values())
        expected = {"open": 0, "undelivered": 0, "corrupt": 0, "slots_free": slots, "admitted": ended}
        found += _differences(frontend, expected)
    for engine in books["engines"]:
        expected = {"waiting": 0, "corrupt": 0, "taken": engine["completed"] + engine["lost"]}
        found += _differences(engine, expected)
        found += [
            f"{engine['name']}: {count} of {priority} queued for {model['name']}"
            for model in engine["models"]
            for priority, count in model["queued"].items()
            if count
        ]
    return found


def _differences(actual: Mapping[str, Any], expected: Mapping[str, int]) -> list[str]:
    return [
        f"{actual['name']}: {field} is {actual[field]}, expected {value}"
        for field, value in expected.items()
        if actual[field] != value
    ]
