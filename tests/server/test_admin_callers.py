"""Changes that go wrong after who asked for them has left: nobody is told, so the log is."""

import asyncio
import gc
from typing import Any

import grpc.aio
import pytest
from structlog.testing import capture_logs

from server.administration import CannotLoad
from server.problems import Problem, SettingsError
from tests.server.admin_calls import Caller
from tests.server.admin_world import administered


@pytest.mark.parametrize(
    ("error", "level", "event", "text"),
    [
        (CannotLoad("no file"), "warning", "change refused after its caller had left", "no file"),
        (
            SettingsError([Problem("slo.p50_ms", "x", "must be a number")]),
            "warning",
            "change refused after its caller had left",
            "slo.p50_ms = x: must be a number",
        ),
        (KeyError("a bug"), "error", "change failed after its caller had left", None),
    ],
)
async def test_a_change_that_fails_without_its_caller(
    monkeypatch: pytest.MonkeyPatch, error: Exception, level: str, event: str, text: str | None
) -> None:
    """Once, as what it is; asyncio has nothing to complain of."""
    began, failed, complaints = asyncio.Event(), asyncio.Event(), list[str]()
    release = asyncio.Event()

    async def load_model(name: str, version: int | None, author: str) -> None:
        began.set()
        await release.wait()
        failed.set()
        raise error

    def complain(_: object, context: dict[str, Any]) -> None:
        # Not of gRPC's poller: a call that an earlier test has left behind may end here, its loop closed.
        if "PollerCompletionQueue" not in context["message"]:
            complaints.append(context["message"])

    asyncio.get_running_loop().set_exception_handler(complain)
    async with administered() as (administration, port):
        monkeypatch.setattr(administration, "load_model", load_model)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
            call = Caller(channel)
            loading = call.start("LoadModel", model_name="pair")
            await began.wait()
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            while not port._access.cancels._levels:  # until the server has heard of it
                await call("GetStatus")
            with capture_logs() as logged:
                release.set()
                await failed.wait()
                await call("GetStatus")
    gc.collect()
    assert [(line["log_level"], line["event"], line.get("error")) for line in logged] == [
        (level, event, text)
    ]
    assert complaints == []
