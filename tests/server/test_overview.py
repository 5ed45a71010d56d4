"""`/live`, `/slo` and deep checks over HTTP, and the report of GetStatus, of made-up readings."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.reply import Reply
from server.telemetry import live
from server.telemetry.totals import DURATION_BOUNDS_S, Totals
from server.telemetry.windows import Span
from tests.server.admin_world import LINEUP, Scripted
from tests.server.made_up import MARKET, MODEL, NORMAL, REAL_TIME, answered, at_second, histogram, nothing
from tests.server.overview_world import overview


class World:
    """An overview with readings of the test's own making."""

    def __init__(self, *readings: Totals) -> None:
        self.overview, self.service = overview(Scripted(), LINEUP, read=lambda: readings[-1])
        for reading in readings:
            self.overview.keep(reading)

    async def get(self, path: str, query: str = "") -> Reply:
        return await self.overview.routes()[path](query)

    async def json(self, path: str, query: str = "") -> Any:
        return json.loads((await self.get(path, query)).body)


async def test_live_has_the_last_second_and_the_last_minute() -> None:
    """By class, all of them, most urgent first; and each second of what is known, oldest first."""
    found = await World(*map(at_second, range(91))).json("/live")
    second, minute = found["activity"]
    assert [entry["priority"] for entry in second["classes"]] == list(live.LABELS)
    assert [(window["window_s"], window["covered_s"]) for window in (second, minute)] == [(1, 1), (60, 60)]
    urgent = minute["classes"][0]
    assert (urgent["requests_per_s"], urgent["failed_per_s"], urgent["depth"]) == (120, 0, 1)
    assert 0.75 < urgent["wait_p50_ms"] <= 1 < urgent["wait_p99_ms"] <= 3
    assert sum(urgent["wait_columns"]) == 7200
    assert "wait_p50_ms" not in minute["classes"][1]
    history = found["history"]
    assert (history["seconds_ago"][0], history["seconds_ago"][-1]) == (89, 0)
    assert history["classes"][0]["requests_per_s"] == [120] * 90
    assert history["classes"][1]["wait_p99_ms"] == [None] * 90
    assert history["mean_batch"] == [6] * 90
    assert (found["state"], found["settings_version"], found["profile"]) == ("ready", 1, "market_hours")
    assert found["readings"]["gpu_utilization_ratio{0}"] == 0.55
    assert [found["engines"][0]["name"], found["frontends"][0]["name"]] == ["engine-0", "frontend-0"]
    assert found["restarts"]["engine-0"] == 2


async def test_flows_are_of_what_had_requests() -> None:
    """Also if not lately: of each model in the order of the classes."""
    late = replace(at_second(90), at_s=200.0)
    found = await World(at_second(90), late).json("/live")
    (minute,) = found["activity"][1:]
    assert [(f["model_name"], f["priority"], f["requests_per_s"]) for f in minute["flows"]] == [
        (MODEL, REAL_TIME, 0),
        (MODEL, NORMAL, 0),
    ]


async def test_models_are_told_with_batches() -> None:
    """Sizes that ran, and each bucket."""
    (model,) = (await World(nothing(), at_second(10)).json("/live"))["activity"][1]["models"]
    assert (model["model_name"], model["batches_per_s"], model["rows_per_s"]) == (MODEL, 30, 180)
    assert (model["mean_batch"], model["target_size"]) == (6, 32)
    assert model["batch_sizes"] == [{"up_to": 8, "batches": 300}]
    assert [(bucket["bucket"], bucket["batches"]) for bucket in model["buckets"]] == [(8, 300)]


async def test_requests_for_what_is_not_there_are_no_flow() -> None:
    """Of a class that nobody knows, for example: they count, and have no line of their own."""
    odd = replace(at_second(10), requests={(MODEL, "", "INVALID_ARGUMENT"): 5})
    found = await World(nothing(), odd).json("/live")
    assert [flow["priority"] for flow in found["activity"][0]["flows"]] == [REAL_TIME, NORMAL]


async def test_in_the_first_second_nothing_is_known() -> None:
    """And that is told rather than zeros."""
    for readings in ((), (nothing(),)):
        world = World(*readings)
        found = await world.json("/live")
        assert (found["activity"], found["history"]["seconds_ago"], found["readings"]) == ([], [], {})
        assert await world.json("/slo") == {"state": "no_data", "windows": [], "recommendations": []}


async def test_live_is_put_together_once_a_reading() -> None:
    """However many look at it."""
    world = World(nothing(), at_second(10))
    first = await world.get("/live")
    assert await world.get("/live") is first
    world.overview.keep(at_second(11))
    assert await world.get("/live") is not first


async def test_slo_has_its_windows_and_advice() -> None:
    """As JSON that a browser does not keep; what is late is said by class."""
    reply = await World(nothing(), answered(MARKET, request_s=0.3, compute_s=0.28)).get("/slo")
    assert (reply.kind, dict(reply.headers)) == ("application/json", {"Cache-Control": "no-store"})
    found = json.loads(reply.body)
    assert found["state"] == "missed"
    assert [window["window_s"] for window in found["windows"]] == [60, 300, 3600]
    p99 = found["windows"][1]["objectives"][2]
    assert (p99["name"], p99["state"], p99["classes"][0]["priority"]) == ("p99_ms", "missed", MARKET)
    assert [each["setting"] for each in found["recommendations"]] == ["executor.precision"]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "ready"),
        ({"is_ready": False}, "not ready"),
        ({"is_ready": False, "announced": False}, "starting"),
        ({"stopping": True}, "draining"),
    ],
)
def test_state_is_told_in_words(change: dict[str, bool], state: str) -> None:
    """Draining comes before anything else."""
    world = World()
    for name, value in change.items():
        setattr(world.service, name, value)
    assert world.overview.report()["state"] == state


@pytest.mark.parametrize("query", ["", "deep=0", "verbose=1"])
async def test_health_is_deep_only_where_asked(query: str) -> None:
    """The plain one says that the supervisor runs, whatever else does."""
    world = World()
    world.service.is_ready = False
    assert (await world.get("/healthz", query)).body == b"ok\n"


@pytest.mark.parametrize(
    ("gone", "is_ready", "state", "status"),
    [([], True, "healthy", 200), (["engine-1"], True, "degraded", 200), ([], False, "unhealthy", 503)],
)
async def test_deep_health_is_told_by_status_and_words(
    gone: list[str], is_ready: bool, state: str, status: int
) -> None:
    """A service that answers, if slowly, is not to be restarted for it."""
    world = World()
    world.service.gone = gone
    world.service.is_ready = is_ready
    reply = await world.get("/healthz", "deep=1")
    found = json.loads(reply.body)
    assert (found["state"], reply.status) == (state, status)
    assert bool(found["reasons"]) == (state != "healthy")


async def test_reading_is_taken_at_once_and_again() -> None:
    """What a service has counted before it is first looked at is no news of its first second."""
    taken = asyncio.Event()

    def read() -> Totals:
        taken.set()
        return nothing(5.0)

    seen, _ = overview(Scripted(), LINEUP, read=read)
    running = asyncio.create_task(seen.run())
    async with asyncio.timeout(20):
        await taken.wait()
    running.cancel()


async def test_reading_that_fails_is_told_once() -> None:
    """And harms nothing but the views."""

    def read() -> Totals:
        raise ValueError("bug")

    seen, _ = overview(Scripted(), LINEUP, read=read)
    with capture_logs() as lines:
        async with asyncio.timeout(20):
            await seen.run()
    assert [line["event"] for line in lines] == ["no further readings: what is shown stays as it is"]


def test_columns_of_a_small_histogram() -> None:
    """Each of its bounds is one of the large histogram's, so that every count has one place."""
    assert set(live.COLUMNS_S) < set(DURATION_BOUNDS_S)
    counted = histogram(
        {0.000_05: 1, 0.000_1: 2, 0.000_11: 4, 0.003: 8, 0.0031: 16, 3.0: 32, 4.0: 64, 99.0: 128}
    )
    assert live.columns(counted) == [3, 4, 0, 8, 16, 0, 0, 0, 0, 32, 192]


def test_report_of_a_span_without_batches() -> None:
    """A model that is loaded and has not run has no mean, and no quantiles."""
    span = Span(nothing(), replace(nothing(1.0), model_ready={("quiet", "1"): 1}))
    (model,) = live.activity(span, 1)["models"]
    assert model["model_name"] == "quiet"
    assert not {"mean_batch", "compute_p50_ms"} & set(model)
