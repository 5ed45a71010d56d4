"""A real Prometheus scrapes a real server: what the dashboard and the runbooks ask for is there."""

import asyncio
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from scheduler.priority import PriorityClass
from tests.deploy import dashboard
from tests.e2e.calls import request, tensor, unary, window_request
from tests.e2e.conftest import Launch
from tests.e2e.prometheus import Prometheus
from tests.e2e.service import BUNDLED
from tests.test_repo import ROOT
from tests.tools import need_tools

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
# What a server on a CPU has nothing to say about.
NEEDS_GPU = {"GPU utilization", "GPU memory in use"}
OPERATIONS = ROOT / "docs" / "operations.md"


async def test_every_panel_shows_what_the_server_does(launch: Launch, tmp_path: Path) -> None:
    """Each query has a series under load, with the labels that its legend names."""
    need_tools("prometheus")
    service = launch(settings=BUNDLED)
    await asyncio.to_thread(service.ready)
    target = urlsplit(service.wait_for("ready")["status"]).netloc
    prometheus = Prometheus(tmp_path, target)
    try:
        await asyncio.to_thread(prometheus.ready)
        async with grpc.aio.insecure_channel(service.target) as channel:
            await show_everything(prometheus, channel)
        check_rules(prometheus)
        for query in dashboard.queries():
            if query.panel in NEEDS_GPU:
                assert prometheus.query(query.expr) == []
        for expression in runbook_queries():
            prometheus.query(expression)
        assert prometheus.query("tickring_process_up == 0 or tickring_model_ready == 0 or up == 0") == []
    finally:
        prometheus.stop()
    service.stop()


async def show_everything(prometheus: Prometheus, channel: grpc.aio.Channel) -> None:
    """Sends requests until every query of the dashboard has found what it looks for."""
    waited_for = [query for query in dashboard.queries() if query.panel not in NEEDS_GPU]
    deadline_s = time.monotonic() + PATIENCE_S
    while waited_for:
        assert time.monotonic() < deadline_s, waited_for
        await load(channel)
        waited_for = [query for query in waited_for if not await asyncio.to_thread(shows, prometheus, query)]


def shows(prometheus: Prometheus, query: dashboard.Query) -> bool:
    """Whether there is a number for it, with all labels of the legend.

    Not every series has each of them: what was refused before its class was known has no class.
    """
    return any(
        query.legend_labels <= series["metric"].keys() and not math.isnan(float(series["value"][1]))
        for series in prometheus.query(query.expr)
    )


async def load(channel: grpc.aio.Channel) -> None:
    """A few requests of every class, one that is wrong, and one that nobody could answer in time."""
    good = [window_request(priority=member.value) for member in PriorityClass for _ in range(4)]
    wrong = request("sp500_direction", tensor("window", [[1.0]]))
    hopeless = window_request(timeout=Duration(nanos=1))
    endings = await asyncio.gather(*(unary(channel, each) for each in (*good, wrong, hopeless)))
    assert [ending.code for ending in endings[:-2]] == [grpc.StatusCode.OK] * len(good)
    assert endings[-2].code is grpc.StatusCode.INVALID_ARGUMENT
    assert endings[-1].code is grpc.StatusCode.DEADLINE_EXCEEDED


def check_rules(prometheus: Prometheus) -> None:
    """Fails unless every rule was evaluated without an error."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def runbook_queries() -> Iterator[str]:
    """Every line of PromQL in docs/operations.md."""
    text = OPERATIONS.read_text()
    for block in re.findall(r"^ *```promql\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        yield from (line.strip() for line in block.splitlines())
    review = text.partition("## Weekly review")[2]
    yield from (code for code in re.findall(r"`([^`]+)`", review) if "[7d" in code)
