"""An administration with no server behind it, on a real admin port; also in a process of its own.

`python -m tests.server.admin_world [SETTINGS]` takes settings as JSON tables, prints its port when it
listens, and ends with 0 when it has drained or its standard input ends. What the models do is chosen by
their names:

    pair    has the versions 1 to 3, the last of which is loaded at first
    slow    loads when `release` is set
    broken  cannot be loaded
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scheduler.arena import Arena, Dimensions
from scheduler.errors import UnknownModel
from scheduler.priority import PriorityClass
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.admin_port import AdminPort
from server.administration import (
    CannotLoad,
    CannotUnload,
    CurrentSettings,
    ModelDescription,
    NeedsRestart,
    Setting,
    SettingsChange,
    VersionConflict,
)
from server.books import EngineState, books
from server.effects import Effect
from server.lineup import Lineup, Seat
from server.models import ServedModel
from server.problems import Problem, SettingsError
from server.repository import Manifest, ModelVersion
from server.settings import Settings
from tests.server.overview_world import overview

VERSIONS = (1, 2, 3)
SETTINGS = (
    Setting("profile", "auto", "command line", Effect.LIVE),
    Setting("server.admin_port", "8003", "default", Effect.RESTART),
    Setting("models.default_model", "", "default", Effect.LIVE),
    Setting("scheduler.max_batch_size", "64", "profile market_hours", Effect.ENGINES),
    Setting("scheduler.latency_budget_ms", "10.0", "file", Effect.LIVE),
    Setting("telemetry.log_level", "info", "environment", Effect.LIVE),
)
INPUTS = (TensorSpec("x", DataType.FP32, (2, 3)),)
OUTPUTS = (TensorSpec("y", DataType.FP64, ()),)
_PAIR = Manifest(
    name="pair",
    description="for tests",
    format="torchscript",
    precision="fp32",
    finite_inputs=False,
    finite_outputs=False,
    inputs=INPUTS,
    outputs=OUTPUTS,
    versions=tuple(ModelVersion(number, Path("model.pt"), f"{number:064x}") for number in VERSIONS),
)
LINEUP = Lineup((_PAIR,), (Seat(0, _PAIR, _PAIR.latest),), "pair")
# What is asked of it and changes something, in the order in which it was asked.
Call = tuple[Any, ...]


class Scripted:
    """An `Administration` that keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.finished: list[str] = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.drained = asyncio.Event()
        self.loaded: dict[str, tuple[int, ...]] = {"pair": (3,), "slow": (), "broken": ()}
        self._version = 1
        self._settings = {setting.path: setting for setting in SETTINGS}
        self._arena = Arena.anonymous(
            Dimensions(
                frontends=1,
                models=1,
                engines=1,
                slots_per_frontend=16,
                input_row_bytes=64,
                output_row_bytes=64,
            )
        )

    async def load_model(self, name: str, version: int | None, author: str) -> None:
        self.calls.append(("load", name, version, author))
        self._check(name, version)
        if name == "broken":
            raise CannotLoad("broken version 3: its file is not the one that its manifest names")
        if name == "slow":
            self.began.set()
            await self.release.wait()
        self.loaded[name] = tuple(sorted({*self.loaded[name], version or VERSIONS[-1]}))
        self.finished.append(name)

    async def unload_model(self, name: str, version: int | None, author: str) -> None:
        self.calls.append(("unload", name, version, author))
        self._check(name, version)
        left = tuple(number for number in self.loaded[name] if version not in (None, number))
        if not left and not any(others for other, others in self.loaded.items() if other != name):
            raise CannotUnload(f"{name} is the last model that is loaded")
        self.loaded[name] = left

    def describe(self, name: str) -> ModelDescription:
        self._check(name, None)
        model = ServedModel(
            index=0,
            row=0,
            signature=ModelSignature(name, VERSIONS[-1], INPUTS, OUTPUTS),
            description="for tests",
            format="torchscript",
            sha256={version: f"{version:064x}" for version in VERSIONS},
            loaded=self.loaded[name],
            max_rows=8,
            default_class=PriorityClass.BATCH_PROCESSING,
        )
        return ModelDescription(model, is_default=name == "pair", ready=name != "broken")

    def current_settings(self) -> CurrentSettings:
        return CurrentSettings(self._version, "market_hours", tuple(self._settings.values()))

    async def update_settings(
        self,
        updates: Mapping[str, str | None],
        *,
        expected_version: int | None,
        validate_only: bool,
        author: str,
    ) -> SettingsChange:
        self.calls.append(("update", dict(updates), expected_version, validate_only, author))
        if expected_version not in (None, self._version):
            assert expected_version is not None
            raise VersionConflict(expected_version, self._version)
        changed = self._changed(updates)
        if changed and not validate_only:
            self._version += 1
            self._settings |= changed
        return SettingsChange(self._version, tuple(changed))

    def books(self) -> dict[str, Any]:
        engine = EngineState("cpu", True, {"gpu_utilization_ratio": 0.5}, LINEUP)
        return books(self._arena, {0: engine}, {"frontend-0": 1, "engine-0": 2})

    def drain(self) -> None:
        self.calls.append(("drain",))
        self.drained.set()

    def _check(self, name: str, version: int | None) -> None:
        if name not in self.loaded:
            raise UnknownModel(f"no model {name!r}; models are {', '.join(self.loaded)}")
        if version is not None and version not in VERSIONS:
            raise UnknownModel(f"no version {version} of {name}", reason="VERSION_NOT_FOUND")

    def _changed(self, updates: Mapping[str, str | None]) -> dict[str, Setting]:
        problems = [
            Problem(path, value, "is no setting")
            for path, value in updates.items()
            if path not in self._settings
        ] + [
            Problem(path, value, "must be a whole number")
            for path, value in updates.items()
            if path.endswith("_size") and value is not None and not value.isdecimal()
        ]
        if problems:
            raise SettingsError(problems)
        at_start = {setting.path: setting for setting in SETTINGS}
        wanted = {
            path: at_start[path]
            if value is None
            else replace(at_start[path], value_text=value, origin="run time")
            for path, value in updates.items()
        }
        changed = {
            path: setting
            for path, setting in wanted.items()
            if setting.value_text != self._settings[path].value_text
        }
        if fixed := [path for path, setting in changed.items() if setting.effect is Effect.RESTART]:
            raise NeedsRestart(fixed)
        return changed


@contextlib.asynccontextmanager
async def administered(tables: Mapping[str, Any] | None = None) -> AsyncIterator[tuple[Scripted, AdminPort]]:
    """The administration and its port, on a free number; `tables` are settings."""
    tables = tables or {}
    server = {"admin_port": 0, **tables.get("server", {})}
    administration = Scripted()
    settings = Settings.model_validate({**tables, "server": server})
    seen, _ = overview(administration, LINEUP)
    port = AdminPort(settings, administration, seen)
    await port.start()
    looking = asyncio.create_task(seen.run())
    try:
        yield administration, port
    finally:
        looking.cancel()
        await port.stop(0)


async def _main(tables: Mapping[str, Any]) -> None:
    async with administered(tables) as (administration, port):
        print(port.port, flush=True)
        reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        draining = asyncio.create_task(administration.drained.wait())
        await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
        await port.stop(10)
        sys.stdout.flush()
        # Not as asyncio.run would end it: that waits for the thread, which waits for standard input.
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))
