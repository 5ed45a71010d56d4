"""The status page: what it may load, and what it shows in a browser while a service works."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.probes import ProbeServer
from server.status_page import page, policy
from tests.server import browser
from tests.server.admin_world import LINEUP, Scripted
from tests.server.browser import Browser
from tests.server.made_up import NORMAL, REAL_TIME, at_second
from tests.server.overview_world import MadeUpService, overview
from tests.test_repo import ROOT

PICTURES = ROOT / "build" / "status_page"
RATE = 'document.getElementById("rate").textContent'
STATE = 'document.getElementById("state").textContent'


class World:
    """A service under a steady load, whose page a browser may look at."""

    def __init__(self) -> None:
        self.second = 90.0
        self.faster = 0.0
        administration = Scripted()
        self.overview, self.service = overview(administration, LINEUP, read=self.read)
        for second in range(90):
            self.overview.keep(at_second(second))

    def read(self) -> object:
        raise AssertionError("the test makes the readings")

    def pass_time(self, load: float = 1.0) -> None:
        """One second, of so many times the usual load."""
        self.second += 1
        self.faster += load - 1
        reading = at_second(self.second + self.faster)
        self.overview.keep(replace(reading, at_s=self.second))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def url(world: World) -> AsyncIterator[str]:
    server = ProbeServer("127.0.0.1", 0, world.service, world.overview.routes())
    await server.start()
    yield f"http://127.0.0.1:{server.port}/"
    server.close()


@pytest.fixture
def program() -> str:
    """A browser; where there is none the test is skipped, or fails where all tools have to be there."""
    found = browser.found()
    if found is None and os.environ.get("TEST_TOOLS_REQUIRED"):
        pytest.fail("not here: chromium")
    if found is None:
        pytest.skip("needs chromium")
    return found
