"""What the admin service asks of the server that it administers, and how that may be refused.

No protobuf here: `server.rpc.admin` turns requests into these calls, and what they give into messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.errors import RequestError
from server.effects import Effect
from server.models import ServedModel
from server.problems import Problem, SettingsError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting in use.

    Attributes:
        value_text: as `update_settings` takes it; empty where it is not set.
        origin: the layer that the value comes from, for people.
    """

    path: str
    value_text: str
    origin: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class CurrentSettings:
    """All settings. `version` is 1 at the start and grows by 1 with each change; `profile` is that in use."""

    version: int
    profile: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """What a change has done, or would do: the version now, and the settings whose value is another one."""

    version: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model as callers are told of it.

    Attributes:
        is_default: whether it is that of requests that name none.
        ready: whether what is loaded of it answers requests now.
    """

    model: ServedModel
    is_default: bool
    ready: bool


class Administration(Protocol):
    """A server from its admin port. All of it runs on the event loop of that port.

    `author` says who asks, for the log: the name of a token, or the address of a peer. Whatever changes
    something may raise `scheduler.errors.Unavailable`, while the server drains for example. No call is
    cancelled when its caller leaves; two may be under way at once.
    """

    async def load_model(self, name: str, version: int | None, author: str) -> None:
        """Reads the manifest again and returns once this version, or the newest, answers requests.

        Changes nothing where it is loaded from the same file already.

        Raises:
            UnknownModel: the repository has no such model or version.
            CannotLoad: it has, and that cannot be served.
        """
        ...

    async def unload_model(self, name: str, version: int | None, author: str) -> None:
        """Returns once this version, or the whole model, is out of service and nothing is in flight for it.

        Raises:
            UnknownModel: there is no such model or version.
            CannotUnload: it must stay.
        """
        ...

    def describe(self, name: str) -> ModelDescription:
        """What is known of this model now. Raises UnknownModel."""
        ...

    def current_settings(self) -> CurrentSettings:
        """In the order in which a configuration is printed; passwords in values are not shown."""
        ...

    async def update_settings(
        self,
        updates: Mapping[str, str | None],
        *,
        expected_version: int | None,
        validate_only: bool,
        author: str,
    ) -> SettingsChange:
        """Changes these settings, all or none, and returns once that is in effect.

        Args:
            updates: by path; None takes back what was set at run time.
            expected_version: of the settings that are changed; None: whichever it is.

        Raises:
            SettingsError: the settings would be wrong.
            NeedsRestart: of one of them a change would have no effect.
            VersionConflict: the settings are of another version.
        """
        ...

    def books(self) -> dict[str, Any]:
        """See `server.books.books`."""
        ...

    def drain(self) -> None:
        """Ends the service as SIGTERM does, and returns before it has ended. Again, it changes nothing."""
        ...


class Reports(Protocol):
    """What is told of the service beyond its books. See `server.overview`."""

    def report(self) -> dict[str, Any]:
        """What it does lately, by the names of the fields of GetStatusResponse."""
        ...

    async def health(self) -> dict[str, Any]:
        """A deep check, by the names of the fields of DeepHealth."""
        ...


class InvalidSettings(RequestError):
    """The settings would be wrong; `problems` has one for each mistake."""

    def __init__(self, error: SettingsError) -> None:
        super().__init__("; ".join(map(str, error.problems)))
        self.problems: Sequence[Problem] = error.problems


class NeedsRestart(RequestError):
    """These settings can be changed only where the server starts."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(f"{', '.join(paths)}: a change takes a restart of the server")
        self.paths = tuple(paths)


class VersionConflict(RequestError):
    """Somebody else has changed the settings meanwhile."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"the settings are of version {actual}, expected is {expected}: read them again")
        self.expected = expected
        self.actual = actual


class CannotLoad(RequestError):
    """A manifest is wrong, or a file cannot be served: its checksum, its model, or no room for it."""


class CannotUnload(RequestError):
    """The model has to stay."""
