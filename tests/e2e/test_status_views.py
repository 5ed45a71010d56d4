"""What a real server says of itself: page, `/live`, `/slo`, deep health, `stats` and `top`."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from client.new_token import NewRole, NewToken, new_token
from tests.e2e.conftest import Launch
from tests.e2e.service import BUNDLED, Service

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def secret() -> NewToken:
    """Of somebody who may look."""
    return new_token("watcher", [NewRole.OBSERVE], None, 0.0)


@pytest.fixture(scope="module")
def guarded(launch: Launch, secret: NewToken, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The bundled model by two front ends, for those who have a token."""
    tokens: Path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(secret.entry)
    tokens.chmod(0o600)
    settings = {**BUNDLED, "TICKRING_SERVER__FRONTENDS": "2", "TICKRING_AUTH__TOKENS_FILE": str(tokens)}
    # Of a machine that others use too: it is not its speed that is looked at.
    settings |= {"TICKRING_SLO__P99_MS": "60000", "TICKRING_EXECUTOR__STALL_TIMEOUT_S": "600"}
    service = launch(settings=settings).ready()
    yield service
    service.stop()


def get(service: Service, path: str) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers of a path."""
    url = str(service.wait_for("ready")["status"]).replace("/status", path)
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def deep(service: Service) -> tuple[int, dict[str, Any]]:
    """Status and verdict of a deep check."""
    status, body, _ = get(service, "/healthz?deep=1")
    return status, json.loads(body)


def tickring(service: Service, secret: NewToken, *arguments: str) -> str:
    """What the command prints, with this token."""
    port = service.wait_for("ready")["admin_port"]
    environment = {
        **os.environ,
        "TICKRING_ADMIN_TARGET": f"127.0.0.1:{port}",
        "TICKRING_TOKEN": secret.token,
    }
    command = [sys.executable, "-m", "client.cli", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_deep_health_needs_no_token(guarded: Service) -> None:
    """A prediction by each front end, though none of their callers may do without."""
    status, found = deep(guarded)
    assert (status, found["state"], found["reasons"]) == (200, "healthy", [])
    assert [each["frontend"] for each in found["predictions"]] == ["frontend-0", "frontend-1"]
    assert {each["model_name"] for each in found["predictions"]} == {"sp500_direction"}


def test_engine_that_stands_still_is_unhealthy(guarded: Service) -> None:
    """Its processes are all there, so nothing else would tell; healthy again with the next answer."""
    with guarded.paused("engine-0"):
        status, found = deep(guarded)
        # A verdict of a moment ago may still be told once.
        while found["state"] == "healthy":
            status, found = deep(guarded)
        assert (status, found["state"]) == (503, "unhealthy")
        assert len(found["reasons"]) == 2
    while deep(guarded)[1]["state"] != "healthy":
        pass


def test_front_end_that_stands_still_is_unhealthy(guarded: Service) -> None:
    """The others answer; some callers would not be answered."""
    with guarded.paused("frontend-1"):
        found = deep(guarded)[1]
        while found["state"] == "healthy":
            found = deep(guarded)[1]
        assert found["reasons"] == ["frontend-1 has not answered"]
        assert [each["frontend"] for each in found["predictions"]] == ["frontend-0"]
    while deep(guarded)[1]["state"] == "unhealthy":
        pass


def test_live_and_slo_are_json_of_the_service(guarded: Service) -> None:
    """State, processes, history and windows."""
    status, body, headers = get(guarded, "/live")
    found = json.loads(body)
    assert (status, headers["Content-Type"], found["state"]) == (200, "application/json", "ready")
    assert [each["name"] for each in found["frontends"]] == ["frontend-0", "frontend-1"]
    assert found["missing"] == []
    assert len(found["history"]["classes"]) == 5
    report = json.loads(get(guarded, "/slo")[1])
    assert [objective["name"] for objective in report["windows"][0]["objectives"]][2] == "p99_ms"


def test_page_tells_nothing_that_is_secret(guarded: Service, secret: NewToken) -> None:
    """Neither do the others: no token, no path of a file, whoever reaches the port."""
    for path in ("/", "/live", "/slo", "/healthz?deep=1"):
        body = get(guarded, path)[1].decode()
        assert secret.token not in body
        assert "tokens.toml" not in body
        assert not re.search(r"(?<![\w.<])/(home|root|tmp|usr)/", body)
    assert "script-src 'sha256-" in get(guarded, "/")[2]["Content-Security-Policy"]


def test_commands_show_the_service(guarded: Service, secret: NewToken) -> None:
    """With the role observe."""
    assert tickring(guarded, secret, "stats").startswith("ready, profile market_hours, ")
    # Slow machines are degraded.
    deep = tickring(guarded, secret, "stats", "--deep")
    assert "health: healthy" in deep or "health: degraded" in deep, deep
    frame = tickring(guarded, secret, "top", "--once")
    assert "frontend-1" in frame
    assert "sp500_direction" in frame


async def test_engine_that_dies_is_told_of(guarded: Service) -> None:
    """Until its successor serves, and as a restart from then on."""
    after = len(guarded.logged())
    os.kill(guarded.pid("engine-0"), signal.SIGKILL)
    await asyncio.to_thread(guarded.wait_for, "child died", after=after)
    await asyncio.to_thread(guarded.wait_for, "engine serves again", after=after)
    found: dict[str, Any] = {"restarts": {}}
    while found["restarts"].get("engine-0") != 1:
        found = json.loads((await asyncio.to_thread(get, guarded, "/live"))[1])
    assert found["missing"] == []
