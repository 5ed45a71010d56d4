"""The client of the admin port, over a real one."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from client import (
    AdminClient,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotReady,
    PermissionDenied,
    PredictionError,
    SettingInfo,
    SettingsChange,
    SettingsChanged,
    TlsFiles,
    Unauthenticated,
    Unavailable,
)
from tests.certificates import Authority

if TYPE_CHECKING:
    from tests.client.conftest import Standin, Start

LEVEL = "telemetry.log_level"


@pytest.fixture
async def admin(admin_port: "Standin") -> AsyncIterator[AdminClient]:
    """A client of its own for each test."""
    async with AdminClient(admin_port.target) as admin:
        yield admin


async def test_models_are_loaded_and_unloaded(admin: AdminClient) -> None:
    """The answer to a load is the model as it is now."""
    model = await admin.load_model("pair", "2")
    assert [(version.version, version.state) for version in model.versions][1:] == [
        ("2", "READY"),
        ("3", "READY"),
    ]
    await admin.unload_model("pair", "2")
    model = await admin.load_model("pair")
    assert [version.state for version in model.versions] == ["AVAILABLE", "AVAILABLE", "READY"]
    assert (model.name, model.inputs[0].shape) == ("pair", (2, 3))


async def test_settings_are_read(admin: AdminClient) -> None:
    """As plain values, in the server's order."""
    found = await admin.settings()
    assert found.profile == "market_hours"
    assert found.settings[0] == SettingInfo("profile", "auto", "command line", "LIVE")
    effects = {setting.path: setting.effect for setting in found.settings}
    assert (effects["server.admin_port"], effects["scheduler.max_batch_size"]) == ("RESTART", "ENGINES")


async def test_settings_change_and_are_taken_back(admin: AdminClient) -> None:
    """None takes back; an empty value is one, and the same value again is no change."""
    version = (await admin.settings()).version
    change = await admin.update_settings({LEVEL: "debug", "models.default_model": ""})
    assert change == SettingsChange(version + 1, (LEVEL,))
    assert SettingInfo(LEVEL, "debug", "run time", "LIVE") in (await admin.settings()).settings
    change = await admin.update_settings({LEVEL: None}, expected_version=version + 1, validate_only=True)
    assert change == SettingsChange(version + 1, (LEVEL,))
    assert (await admin.update_settings({LEVEL: None})).version == version + 2
    assert SettingInfo(LEVEL, "info", "environment", "LIVE") in (await admin.settings()).settings


async def test_status_is_plain_values(admin: AdminClient) -> None:
    """Every class and every outcome by its name."""
    status = await admin.status()
    assert status.uptime_ns > 0
    assert status.settings_version == (await admin.settings()).version
    (frontend,), (engine,) = status.frontends, status.engines
    assert (frontend.name, frontend.restarts) == ("frontend-0", 1)
    assert list(frontend.ended) == ["result", "error", "non_finite", "expired", "cancelled", "lost"]
    assert (engine.device, engine.ready, engine.restarts) == ("cpu", True, 2)
    assert engine.readings == {"gpu_utilization_ratio": 0.5}
    (model,) = engine.models
    assert (model.model_name, model.model_version, model.latency) == ("pair", "3", ())
    assert list(model.queued) == [
        "real_time_trading",
        "market_data_update",
        "batch_processing",
        "historical_analysis",
        "background_tasks",
    ]


async def test_refusals_have_their_class_and_reason(admin: AdminClient) -> None:
    """So that a program need not read texts."""
    with pytest.raises(NotFound) as unknown:
        await admin.load_model("none")
    assert unknown.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(NotReady, match="its file is not the one") as broken:
        await admin.load_model("broken")
    assert broken.value.reason == "CANNOT_LOAD"
    with pytest.raises(NotReady) as last:
        await admin.unload_model("pair")
    assert last.value.reason == "CANNOT_UNLOAD"
    with pytest.raises(InvalidRequest) as invalid:
        await admin.update_settings({"scheduler.max_batch_size": "many", "bogus": "1"})
    assert (invalid.value.reason, invalid.value.field) == ("INVALID_SETTINGS", "bogus")
    assert "max_batch_size = many" in invalid.value.message
    with pytest.raises(NotReady, match=r"server\.admin_port") as restart:
        await admin.update_settings({"server.admin_port": "1"})
    assert restart.value.reason == "NEEDS_RESTART"
    with pytest.raises(SettingsChanged) as conflict:
        await admin.update_settings({LEVEL: "debug"}, expected_version=1000)
    assert conflict.value.reason == "SETTINGS_CHANGED"


async def test_timeout_ends_the_call(admin: AdminClient) -> None:
    """A change that takes longer goes on at the server."""
    with pytest.raises(DeadlineExceeded):
        await admin.load_model("slow", timeout_s=0.2)


async def test_closed_client_says_so(admin_port: "Standin") -> None:
    """Of a call that is under way and of a later one."""
    admin = AdminClient(admin_port.target)
    await admin.settings()
    loading = asyncio.create_task(admin.load_model("slow"))
    await asyncio.sleep(0)  # it is sent
    await admin.close()
    with pytest.raises(Cancelled):
        await loading
    with pytest.raises(Cancelled):
        await admin.status()


async def test_drain_ends_the_server(start_admin: "Start") -> None:
    """After its answer."""
    server = start_admin()
    async with AdminClient(server.target) as admin:
        await admin.drain()
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        with pytest.raises(Unavailable):
            await admin.status()


async def test_token_and_tls(start_admin: "Start", tmp_path: Path) -> None:
    """As with the other client; the constructor refuses to send a token in clear text."""
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        "".join(
            f'[tokens.{role}]\nroles = ["{role}"]\nsha256 = "{hashlib.sha256(role.encode()).hexdigest()}"\n'
            for role in ("observe", "admin")
        )
    )
    server = start_admin(
        tls={"cert": str(pair.cert), "key": str(pair.key)}, auth={"tokens_file": str(tokens)}
    )
    tls = TlsFiles(authority.cert)
    for token, error in (("admin", None), ("observe", PermissionDenied), (None, Unauthenticated)):
        async with AdminClient(server.target, tls=tls, token=token) as admin:
            if error is None:
                await admin.update_settings({LEVEL: "debug"})
            else:
                with pytest.raises(error):
                    await admin.update_settings({LEVEL: "debug"})
    async with AdminClient(server.target) as admin:
        with pytest.raises(PredictionError):
            await admin.status()
    with pytest.raises(ValueError, match="clear text"):
        AdminClient("tickring.example:8003", token="admin")
