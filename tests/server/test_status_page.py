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
from server.telemetry.totals import Totals
from tests.server import browser
from tests.server.admin_world import LINEUP, Scripted
from tests.server.browser import Browser
from tests.server.made_up import at_second
from tests.server.overview_world import overview
from tests.test_repo import ROOT

PICTURES = ROOT / "build" / "status_page"
RATE = 'document.getElementById("rate").textContent'
STATE = 'document.getElementById("state").textContent'


READY = f"{RATE}.match(/[0-9]/)"


class World:
    """A service under a steady load, whose page a browser may look at."""

    def __init__(self) -> None:
        self.second = 90.0
        self.faster = 0.0
        administration = Scripted()
        self.overview, self.service = overview(administration, LINEUP, read=self.read)
        self.server = ProbeServer("127.0.0.1", 0, self.service, self.overview.routes())
        for second in range(int(self.second) + 1):
            self.overview.keep(at_second(second))

    def read(self) -> Totals:
        raise AssertionError("the test makes the readings")

    def pass_time(self, load: float = 1.0) -> None:
        """One second, of so many times the usual load."""
        self.second += 1
        self.faster += load - 1  # more seconds' worth of work than seconds
        reading = at_second(self.second + self.faster)
        self.overview.keep(replace(reading, at_s=self.second))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def url(world: World) -> AsyncIterator[str]:
    await world.server.start()
    yield f"http://127.0.0.1:{world.server.port}/"
    world.server.close()


@pytest.fixture
def program() -> str:
    """A browser; where there is none the test is skipped, or fails where all tools have to be there."""
    found = browser.found()
    if found is None and os.environ.get("TEST_BROWSER_REQUIRED"):
        pytest.fail("not here: chromium")
    if found is None:
        pytest.skip("needs chromium")
    return found


def test_policy_lets_nothing_in_but_the_page_itself() -> None:
    """Its own script and style by their hashes, its own server; no other host, frame or form."""
    directives = dict(
        part.split(" ", 1) for part in policy(b"<style>a</style><script>b</script>").split("; ")
    )
    assert directives == {
        "default-src": "'none'",
        "script-src": "'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='",
        "style-src": "'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_page_names_no_other_host() -> None:
    """The one address in it is the namespace of SVG, which nobody fetches."""
    text = page().body.decode()
    assert re.findall(r"https?://[^\"'\s]+", text) == ["http://www.w3.org/2000/svg"]
    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*", text) == [
        '<link rel="icon" href="data:,"',
        "<script",
    ]
    assert "innerHTML" not in text


async def test_numbers_change_while_load_runs(world: World, url: str, program: str, tmp_path: Path) -> None:
    """Without a complaint of the browser: of its script, or of what the policy forbids."""

    def look() -> tuple[str, list[str]]:
        with Browser(program, tmp_path) as seen:
            seen.open(url)
            seen.wait_until(f"document.getElementById('rate') && {READY}")
            before = seen.evaluate(RATE)
            asyncio.run_coroutine_threadsafe(busier(), loop).result()
            seen.wait_until(f"{RATE} !== {before!r}")
            assert seen.evaluate("document.querySelectorAll('#chart-wait path.course').length") >= 2
            return f"{before} {seen.evaluate(RATE)}", seen.complaints

    async def busier() -> None:
        world.pass_time(3)

    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(look) == ("180 540", [])


async def test_page_says_what_is_wrong(world: World, url: str, program: str, tmp_path: Path) -> None:
    """In words: that the service drains, that a process is gone, that nobody answers any more."""
    gone = "document.getElementById('processes').textContent"
    away = "document.getElementById('away')"

    def look() -> list[str]:
        with Browser(program, tmp_path) as seen:
            seen.open(url)
            seen.wait_until(f"document.getElementById('rate') && {READY}")
            found = [seen.evaluate(STATE)]
            asyncio.run_coroutine_threadsafe(breaks(), loop).result()
            seen.wait_until(f"{STATE} !== {found[0]!r}")
            found += [seen.evaluate(STATE), seen.evaluate(gone)]
            loop.call_soon_threadsafe(world.server.close)
            seen.wait_until(f"!{away}.hidden")
            return [*found, seen.evaluate(f"{away}.textContent")]

    async def breaks() -> None:
        world.service.stopping = True
        world.service.gone = ["engine-0"]
        world.pass_time()

    loop = asyncio.get_running_loop()
    before, after, processes, message = await asyncio.to_thread(look)
    assert (before, after) == ("✓ ready", "! draining")
    assert processes.count("✗ does not serve") == 1
    assert message.startswith("No answer from the server since ")


async def test_page_is_pictured(world: World, url: str, program: str, tmp_path: Path) -> None:
    """Light and dark, for whoever wants to see it; and what colours say is not the same in both."""

    def look() -> list[str]:
        colours = []
        with Browser(program, tmp_path) as seen:
            for name, dark in (("light", False), ("dark", True)):
                seen.window(1280, 800, dark=dark)
                seen.open(url)
                seen.wait_until(f"document.getElementById('rate') && {READY}")
                seen.screenshot(PICTURES / f"{name}.png")
                colours.append(seen.evaluate("getComputedStyle(document.body).backgroundColor"))
        return colours

    light, dark = await asyncio.to_thread(look)
    assert light != dark
    assert min((PICTURES / f"{name}.png").stat().st_size for name in ("light", "dark")) > 10_000


def luminance(colour: str) -> float:
    """Relative, of `#rrggbb`; W3C, Web Content Accessibility Guidelines 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out_from_what_is_behind_it() -> None:
    """By 4.5 to 1, and lines by 3 to 1, in both schemes."""
    light, dark = re.findall(r":root \{(.*?)\}", page().body.decode(), re.DOTALL)
    for scheme in (light, dark):
        colours: dict[str, str] = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", scheme))
        pairs = [("ink", "card", 4.5), ("ink", "back", 4.5), ("soft", "card", 4.5), ("soft", "back", 4.5)]
        pairs += [(name, f"{name}-back", 4.5) for name in ("good", "bad", "warn")]
        pairs += [("good", "card", 4.5), ("bad", "card", 4.5), *((f"c{n}", "card", 3.0) for n in range(5))]
        for front, behind, least in pairs:
            bright, dim = sorted((luminance(colours[front]), luminance(colours[behind])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= least, (front, behind)
