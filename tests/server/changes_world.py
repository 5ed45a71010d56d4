"""`Changes` where all but the supervisor is real: settings of a file and variables, a repository on disk."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from server.changes import Changes
from server.configuration import load_configuration
from server.handover import PreparationFailed
from server.lineup import Lineup, Wishes, line_up
from server.repository import load_repository
from server.revision import Revision
from server.settings import Settings
from server.supervisor import Supervisor

PLACES = 4
ROW_BYTES = 64
# More turns of the event loop than a change takes that waits for nothing.
ROUNDS = 50


class Standing:
    """In the place of the supervisor: goes by what it is told, unless a test stops it or makes it fail."""

    def __init__(self, settings: Settings, lineup: Lineup) -> None:
        self.revision = Revision(0, settings, lineup)
        self.places = PLACES
        self.row_bytes = (ROW_BYTES, ROW_BYTES)
        self.ready = True
        self.readiness_asked = 0
        self.stopping = False
        self.drains = 0
        # Of every change whether it was by new engines.
        self.changes: list[bool] = []
        self.under_way = 0
        self.seen_offs = 0
        self.failure = ""  # of the next engines to be prepared
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    @property
    def is_ready(self) -> bool:
        self.readiness_asked += 1
        return self.ready

    async def change(self, settings: Settings, lineup: Lineup, *, by_new_engines: bool) -> Revision:
        assert self.under_way == 0, "one at a time"
        self.under_way += 1
        try:
            await self.goes_on.wait()
            if by_new_engines and self.failure:
                raise PreparationFailed(self.failure)
            self.changes.append(by_new_engines)
            self.revision = Revision(self.revision.number + 1, settings, lineup)
            return self.revision
        finally:
            self.under_way -= 1

    async def seen_off(self) -> None:
        await self.goes_on.wait()
        self.seen_offs += 1

    def books(self) -> dict[str, Any]:
        return {"frontends": []}

    def drain(self) -> None:
        self.stopping = True
        self.drains += 1


@dataclass
class Model:
    """A model's folder, whose files hold no model: nobody loads them here."""

    folder: Path
    versions: dict[int, bytes] = field(default_factory=dict)

    def write(self, *, aliases: Mapping[str, int] | None = None, shape: str = "[2]", rest: str = "") -> None:
        """A manifest of its versions, whatever it said before."""
        name = self.folder.name
        text = f'name = "{name}"\nformat = "torchscript"\nprecision = "fp32"\n{rest}\n'
        for kind in ("inputs", "outputs"):
            text += f'[[{kind}]]\nname = "{kind[0]}"\ndata_type = "FP32"\nshape = {shape}\n'
        for number, file in self.versions.items():
            path = self.folder / str(number) / "model.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, file)
            text += f'[versions.{number}]\nsha256 = "{hashlib.sha256(file).hexdigest()}"\n'
        if aliases:
            text += "[aliases]\n" + "".join(f"{alias} = {number}\n" for alias, number in aliases.items())
        put(self.folder / "model.toml", text.encode())

    def add(self, number: int, file: bytes = b"") -> None:
        """One more version, or another file of one."""
        self.versions[number] = file or f"{self.folder.name} {number}".encode()
        self.write()


class Service:
    """Two models, `a` in two versions and `b` in one; of `a` the newest is loaded."""

    def __init__(self, folder: Path, text: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.path = folder / "repository"
        self.file = folder / "tickring.toml"
        self.file.write_text(text)
        self.a, self.b = (Model(self.path / name) for name in "ab")
        for model, number in ((self.a, 1), (self.a, 2), (self.b, 1)):
            model.add(number)
        self.environ = dict(environ or {})
        configuration = load_configuration({}, config=self.file, environ=self.environ)
        settings = configuration.settings
        repository = load_repository(self.path, default_model=settings.models.default_model)
        self.supervisor = Standing(settings, line_up(repository, Wishes(), PLACES))
        self.changes = Changes(cast(Supervisor, self.supervisor), configuration, self.path, repository)

    @property
    def settings(self) -> Settings:
        """Those that the processes go by."""
        return self.supervisor.revision.settings

    @property
    def version(self) -> int:
        """Of the settings, as callers see it."""
        return self.changes.current_settings().version

    def seated(self) -> dict[int, tuple[str, int]]:
        """Name and version of what is loaded, by place."""
        lineup = self.supervisor.revision.lineup
        return {seat.place: (seat.manifest.name, seat.version.version) for seat in lineup.seats}

    def value(self, path: str) -> tuple[str, str]:
        """Of a setting: its text and where that comes from."""
        (setting,) = (each for each in self.changes.current_settings().settings if each.path == path)
        return setting.value_text, setting.origin

    async def update(self, **updates: str | None) -> Any:
        """By paths with __ for the point."""
        return await self.changes.update_settings(
            {path.replace("__", "."): value for path, value in updates.items()},
            expected_version=None,
            validate_only=False,
            author="tester",
        )

    async def reload(self) -> None:
        """As on SIGHUP; returns once that is done."""
        self.changes.reload()
        await self.idle()

    async def idle(self) -> None:
        """Returns once nothing is under way: whoever comes is served in turn, and this last."""
        while self.changes._under_way:
            await asyncio.wait(self.changes._under_way)


def put(path: Path, content: bytes) -> None:
    """All at once: somebody may be reading."""
    new = path.with_name(f".{path.name}")
    new.write_bytes(content)
    new.rename(path)


async def rounds() -> None:
    """Whatever can happen now has happened."""
    for _ in range(ROUNDS):
        await asyncio.sleep(0)
