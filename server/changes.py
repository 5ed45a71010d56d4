"""What changes while the service runs: settings, models, profile. One change at a time, whole or not at all.

Every change is worked out and validated here first; then the supervisor prepares what it takes and everybody
goes by it at once. So a change that fails leaves what was there.
"""

import asyncio
import re
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from scheduler.errors import RequestError, Unavailable, UnknownModel
from server.administration import (
    CannotLoad,
    CannotUnload,
    CurrentSettings,
    InvalidSettings,
    ModelDescription,
    NeedsRestart,
    Setting,
    SettingsChange,
    VersionConflict,
)
from server.admission import DRAIN_RETRY_S
from server.configuration import Configuration
from server.effects import Effect, changed, effect_of
from server.handover import PreparationFailed
from server.layers import AUTO, as_text
from server.lineup import Lineup, NoRoom, Wishes, line_up
from server.models import ModelTable
from server.problems import SettingsError
from server.profile_switch import ProfileSwitch, WallClock
from server.repository import (
    Manifest,
    Repository,
    RepositoryError,
    load_manifest,
    load_repository,
    with_default,
)
from server.served import served
from server.supervisor import Supervisor
from server.trading_calendar import TradingCalendar, at_this_hour

# Who changes something by itself, for the log.
BY_CALENDAR, BY_POLL, BY_SIGNAL = "calendar", "poll", "SIGHUP"
# How often it is looked whether polling or the calendar are asked for, while they are not.
LOOK_AT_SETTINGS_EVERY_S = 1.0
# Of a URL: whoever may see the settings need not know the password in one.
_USER_INFO = re.compile("(://).*@", re.DOTALL)

T = TypeVar("T")

log = structlog.get_logger()


class Changes:
    """The `Administration` of a service. Belongs to the supervisor's event loop."""

    def __init__(
        self, supervisor: Supervisor, configuration: Configuration, path: Path, repository: Repository
    ) -> None:
        """`path`: of the repository, which `repository` was read from."""
        self._supervisor = supervisor
        self._configuration = configuration
        self._path = path
        self._repository = repository
        self._wishes = Wishes()
        self._version = 1
        self._one_at_a_time = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._complained = ""  # about the repository, when it was last polled

    # -- models ---------------------------------------------------------------------------------

    async def load_model(self, name: str, version: int | None, author: str) -> None:
        """See `Administration`."""
        await self._whole(self._load_model(name, version, author))

    async def unload_model(self, name: str, version: int | None, author: str) -> None:
        """See `Administration`."""
        await self._whole(self._unload_model(name, version, author))

    def describe(self, name: str) -> ModelDescription:
        """See `Administration`."""
        revision = self._supervisor.revision
        table = ModelTable(served(revision.lineup, revision.settings), revision.lineup.default_model)
        model = table.find(name)
        is_default = model.signature.name == table.default_name
        return ModelDescription(model, is_default, self._supervisor.is_ready)

    async def _load_model(self, name: str, version: int | None, author: str) -> None:
        try:
            found = await asyncio.to_thread(load_manifest, self._path, name)
        except RepositoryError as error:
            raise CannotLoad("; ".join(error.problems)) from error
        if found is None:
            raise UnknownModel(f"no model {name[:128]!r} in the repository")
        _check_version(found, version)
        repository = self._with(found)
        await self._serve(
            repository, self._wishes.load(found, version), author, "model loaded", name, version
        )

    async def _unload_model(self, name: str, version: int | None, author: str) -> None:
        manifest = next((each for each in self._repository.manifests if each.name == name), None)
        if manifest is None:
            raise UnknownModel(f"no model {name[:128]!r} in the repository")
        _check_version(manifest, version)
        for alias, number in manifest.aliases.items():
            if number == version:
                raise CannotUnload(f"version {version} of {name} is its {alias} version, by its manifest")
        await self._serve(
            self._repository, self._wishes.unload(name, version), author, "model unloaded", name, version
        )
        await self._supervisor.seen_off()

    async def _poll(self) -> None:
        try:
            repository = await asyncio.to_thread(load_repository, self._path)
            default = self._configuration.settings.models.default_model
            await self._serve(with_default(repository, default), self._wishes, BY_POLL, "models changed")
        except (RepositoryError, SettingsError, RequestError) as error:
            if str(error) != self._complained:
                log.error("repository not taken up, nothing has changed", problems=str(error).splitlines())
            self._complained = str(error)
        else:
            self._complained = ""

    async def _serve(
        self,
        repository: Repository,
        wishes: Wishes,
        author: str,
        event: str,
        name: str = "",
        version: int | None = None,
    ) -> None:
        before = self._supervisor.revision.lineup
        lineup = self._lined_up(repository, wishes)
        if lineup != before:
            await self._change(self._configuration, lineup)
            log.info(event, author=author, model=name, version=version, serving=_names(lineup))
        self._repository, self._wishes = repository, wishes

    def _with(self, manifest: Manifest) -> Repository:
        by_name = {each.name: each for each in self._repository.manifests} | {manifest.name: manifest}
        ordered = tuple(by_name[name] for name in sorted(by_name))
        return replace(self._repository, manifests=ordered)

    def _lined_up(self, repository: Repository, wishes: Wishes) -> Lineup:
        """Raises CannotLoad where something has no room."""
        supervisor = self._supervisor
        try:
            lineup = line_up(repository, wishes, supervisor.places, supervisor.revision.lineup)
        except NoRoom as error:
            raise CannotLoad(f"{error}; models.max_loaded sets how many there are, with a restart") from error
        for seat in lineup.seats:
            signature = seat.manifest.signature(seat.version.version)
            for kind, needed, room in zip(
                ("inputs", "outputs"),
                (signature.input_row_bytes, signature.output_row_bytes),
                supervisor.row_bytes,
                strict=True,
            ):
                if needed > room:
                    raise CannotLoad(
                        f"the {kind} of one item of {signature.name} take {needed} bytes, there is room for "
                        f"{room}; models.max_row_bytes sets how much, with a restart"
                    )
        return lineup

    # -- settings -------------------------------------------------------------------------------

    def current_settings(self) -> CurrentSettings:
        """See `Administration`."""
        configuration = self._configuration
        return CurrentSettings(
            self._version,
            configuration.profile,
            tuple(
                Setting(path, text, configuration.origin(path), _effect(path))
                for path, text in _texts(configuration).items()
            ),
        )

    async def update_settings(
        self,
        updates: Mapping[str, str | None],
        *,
        expected_version: int | None,
        validate_only: bool,
        author: str,
    ) -> SettingsChange:
        """See `Administration`."""

        async def update() -> SettingsChange:
            if expected_version is not None and expected_version != self._version:
                raise VersionConflict(expected_version, self._version)
            return await self._adopt(
                self._configuration.with_updates(updates), author, validate_only=validate_only
            )

        try:
            return await self._whole(update())
        except SettingsError as error:
            raise InvalidSettings(error) from error

    def reload(self) -> None:
        """SIGHUP: takes up what file and environment say now, and looks at the repository."""

        async def reload() -> None:
            try:
                change = await self._adopt(self._configuration.reloaded(), BY_SIGNAL)
                log.info("settings reloaded", version=change.version, changed=len(change.paths))
            except (SettingsError, RequestError) as error:
                log.error("settings not reloaded, nothing was changed", problems=str(error).splitlines())
            await self._poll()

        self._start(self._locked(reload()))

    async def _adopt(
        self, wanted: Configuration, author: str, *, validate_only: bool = False
    ) -> SettingsChange:
        before = self._configuration
        wanted = await self._by_calendar(wanted)
        effects = changed(before.settings, wanted.settings)
        was, is_now = before.values(), wanted.values()
        paths = [path for path, value in is_now.items() if value != was[path]]
        if restart := [path for path, effect in effects.items() if effect is Effect.RESTART]:
            raise NeedsRestart(restart)
        repository = with_default(self._repository, wanted.settings.models.default_model)
        if validate_only:
            return SettingsChange(self._version, tuple(paths))
        lineup = replace(self._supervisor.revision.lineup, default_model=repository.default_model)
        if effects:
            await self._change(
                wanted, lineup, by_new_engines=any(effect is Effect.ENGINES for effect in effects.values())
            )
        self._repository = repository
        self._configuration = wanted
        if paths:
            self._version += 1
            log.info(
                "settings changed",
                author=author,
                version=self._version,
                changes={path: [_texts(before)[path], _texts(wanted)[path]] for path in paths},
            )
        return SettingsChange(self._version, tuple(paths))

    async def _by_calendar(self, wanted: Configuration) -> Configuration:
        """With the profile of this moment, where it is to follow a calendar that it did not follow before.

        Raises:
            SettingsError: there is no such calendar.
        """
        before = self._configuration
        if before.chosen_profile == AUTO and before.settings.calendar == wanted.settings.calendar:
            return wanted
        return await asyncio.to_thread(at_this_hour, wanted)

    # -- by themselves --------------------------------------------------------------------------

    async def follow_repository(self) -> None:
        """Looks at the repository every `models.poll_s`, as long as that is set. Until cancelled."""
        while True:
            every_s = self._configuration.settings.models.poll_s
            await asyncio.sleep(every_s or LOOK_AT_SETTINGS_EVERY_S)
            if every_s and self._supervisor.is_ready:
                await self._whole(self._poll())

    async def follow_calendar(self) -> None:
        """Switches the profile while it is "auto". Until cancelled."""
        following: asyncio.Task[Any] | None = None
        followed: object = None
        try:
            while True:
                table = self._configuration.settings.calendar
                wanted = table if self._configuration.chosen_profile == AUTO else None
                if wanted != followed:
                    if following is not None:
                        following.cancel()
                    following = None if wanted is None else asyncio.create_task(self._switch_by_calendar())
                    followed = wanted
                await asyncio.sleep(LOOK_AT_SETTINGS_EVERY_S)
        finally:
            if following is not None:
                following.cancel()

    async def _switch_by_calendar(self) -> None:
        table = self._configuration.settings.calendar
        try:
            calendar = await asyncio.to_thread(TradingCalendar, table.exchange, table.lead_s)
        except SettingsError as error:
            log.error("no calendar to follow, the profile stays", problems=str(error).splitlines())
            return

        async def apply(profile: str) -> None:
            async def switch() -> None:
                before = self._configuration.profile
                await self._adopt(self._configuration.with_profile(profile), BY_CALENDAR)
                if self._configuration.profile != before:
                    log.info("profile switched", profile=profile, exchange=table.exchange)

            await self._whole(switch())

        await ProfileSwitch(calendar, apply, WallClock(), lambda: self._configuration.profile).run()

    # -- status ---------------------------------------------------------------------------------

    def books(self) -> dict[str, Any]:
        """See `Administration`."""
        return self._supervisor.books()

    def drain(self) -> None:
        """See `Administration`."""
        if not self._supervisor.stopping:
            self._supervisor.drain()

    # -- one at a time --------------------------------------------------------------------------

    async def _change(
        self, configuration: Configuration, lineup: Lineup, *, by_new_engines: bool = False
    ) -> None:
        before = self._supervisor.revision.lineup
        others = [seat.identity for seat in lineup.seats] != [seat.identity for seat in before.seats]
        self._check_serving()
        try:
            await self._supervisor.change(
                configuration.settings, lineup, by_new_engines=by_new_engines or others
            )
        except PreparationFailed as error:
            self._check_serving()
            raise CannotLoad(f"engines cannot serve so: {error}") from error

    def _check_serving(self) -> None:
        if self._supervisor.stopping:
            raise Unavailable("the server is draining", reason="DRAINING", retry_after_s=DRAIN_RETRY_S)

    async def _locked(self, change: Coroutine[Any, Any, T]) -> T:
        async with self._one_at_a_time:
            return await change

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """Goes on to its end also where who asked for it leaves."""
        return await asyncio.shield(self._start(self._locked(change)))

    def _start(self, change: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(change)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


def _check_version(manifest: Manifest, version: int | None) -> None:
    known = [each.version for each in manifest.versions]
    if version is not None and version not in known:
        raise UnknownModel(
            f"no version {version} of {manifest.name}; versions are {', '.join(map(str, known))}",
            reason="VERSION_NOT_FOUND",
        )


def _texts(configuration: Configuration) -> dict[str, str]:
    return {path: _USER_INFO.sub(r"\1***@", as_text(value)) for path, value in configuration.values().items()}


def _effect(path: str) -> Effect:
    """`profile` is what settings come from, and no setting itself: at worst it changes those of engines."""
    return Effect.ENGINES if path == "profile" else effect_of(path)


def _names(lineup: Lineup) -> list[str]:
    return [f"{seat.manifest.name}/{seat.version.version}" for seat in lineup.seats]
