"""Verdicts of deep checks, and how many of them run."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from scheduler.clock import VirtualClock
from server.deep_health import DEGRADED, HEALTHY, KEPT_NS, TIMEOUT_S, UNHEALTHY, DeepHealth, judge

Tried = Mapping[str, list[dict[str, Any]] | None]


def prediction(ms: float = 2.0, error: str = "", *, by_model: bool = False) -> dict[str, Any]:
    return {"model_name": "pair", "model_version": "3", "ms": ms, "error": error, "by_model": by_model}


class Service:
    """What is checked."""

    is_ready = True

    def missing(self) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("tried", "is_ready", "missing", "state", "reasons"),
    [
        ({"frontend-0": [prediction(100.0)]}, True, [], HEALTHY, ()),
        (
            {"frontend-0": [prediction()], "frontend-1": [prediction(100.1)]},
            True,
            [],
            DEGRADED,
            ("pair version 3 on frontend-1 took 100 ms, slo.p99_ms is 100",),
        ),
        ({"frontend-0": [prediction()]}, True, ["engine-1"], DEGRADED, ("engine-1 does not serve",)),
        (
            {"frontend-0": [prediction(error="answered NaN", by_model=True)]},
            True,
            [],
            DEGRADED,
            ("pair version 3 on frontend-0 fails on zeros: answered NaN",),
        ),
        (
            {"frontend-0": [prediction(500.0), prediction(error="the engine was lost")]},
            True,
            [],
            UNHEALTHY,
            (
                "pair version 3 on frontend-0: the engine was lost",
                "pair version 3 on frontend-0 took 500 ms, slo.p99_ms is 100",
            ),
        ),
        ({"frontend-0": None}, True, [], UNHEALTHY, ("frontend-0 has not answered",)),
        ({}, False, ["engine-0"], UNHEALTHY, ("the service is not ready", "engine-0 does not serve")),
        ({"frontend-0": []}, True, [], DEGRADED, ("no model is loaded",)),
    ],
)
def test_verdict(
    tried: Tried, is_ready: bool, missing: list[str], state: str, reasons: tuple[str, ...]
) -> None:
    """With every reason, the worst first."""
    found = judge(tried, is_ready, missing, 100.0)
    assert (found.state, found.reasons) == (state, reasons)


async def test_who_asks_meanwhile_waits_for_the_same_check() -> None:
    """One at a time; and who stops waiting does not stop it."""
    asked: list[float] = []
    began, release = asyncio.Event(), asyncio.Event()

    async def try_models(timeout_s: float) -> Tried:
        asked.append(timeout_s)
        began.set()
        await release.wait()
        return {"frontend-0": [prediction()]}

    health = DeepHealth(Service(), try_models, lambda: 100.0, VirtualClock())
    first, second = (asyncio.create_task(health.check()) for _ in range(2))
    await began.wait()
    first.cancel()
    release.set()
    assert (await second).state == HEALTHY
    assert asked == [TIMEOUT_S]


async def test_verdict_is_kept_for_a_moment() -> None:
    """So that asking again and again costs nobody anything; then it is tried again."""
    tries = 0
    clock = VirtualClock()

    async def try_models(_timeout_s: float) -> Tried:
        nonlocal tries
        tries += 1
        return {"frontend-0": [prediction()]}

    health = DeepHealth(Service(), try_models, lambda: 100.0, clock)
    for after_ns, expected in ((0, 1), (KEPT_NS - 1, 1), (1, 2)):
        clock.advance(after_ns)
        await health.check()
        assert tries == expected


async def test_nothing_is_tried_while_nothing_serves() -> None:
    """It would only wait for its end."""
    service = Service()
    service.is_ready = False

    async def try_models(_timeout_s: float) -> Tried:
        raise AssertionError

    verdict = await DeepHealth(service, try_models, lambda: 100.0, VirtualClock()).check()
    assert verdict.to_json() == {
        "state": UNHEALTHY,
        "reasons": ["the service is not ready"],
        "predictions": [],
    }
