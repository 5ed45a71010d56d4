"""Which versions of which models are served, and where: pure, decided by the supervisor alone.

A loaded version has a *place*: an index of the arena, with lanes and books of its own, for as long as any
engine serves it. A change keeps the place of what stays, so that what is queued there, counted and predicted
goes on. What is new gets a place that nobody uses any more.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from scheduler import _ring
from server.repository import Manifest, ModelVersion, Repository

LATEST = "latest"


class NoRoom(Exception):
    """More versions would be loaded at once than there are places."""


@dataclass(frozen=True)
class Seat:
    """A loaded version of a model and its place."""

    place: int
    manifest: Manifest
    version: ModelVersion

    @cached_property
    def identity(self) -> str:
        """Equal for two seats when an engine that serves one of them serves the other."""
        core = replace(self.manifest, description="", versions=(self.version,), aliases={})
        return core.to_json()

    @cached_property
    def number(self) -> int:
        """The same in 64 bits."""
        return int.from_bytes(hashlib.sha256(self.identity.encode()).digest()[:8])


@dataclass(frozen=True)
class Wishes:
    """What calls have asked for beyond what the manifests say: versions by model name.

    Attributes:
        loaded: to be loaded in any case.
        unloaded: not to be loaded.
        away: models of which nothing is to be loaded.
    """

    loaded: frozenset[tuple[str, int]] = frozenset()
    unloaded: frozenset[tuple[str, int]] = frozenset()
    away: frozenset[str] = frozenset()

    def load(self, manifest: Manifest, version: int | None) -> "Wishes":
        """With this version too; None: as the manifest says."""
        wanted = manifest.latest.version if version is None else version
        entry = (manifest.name, wanted)
        kept = {entry} if version is not None else set()
        return Wishes(self.loaded | kept, self.unloaded - {entry}, self.away - {manifest.name})

    def unload(self, name: str, version: int | None) -> "Wishes":
        """Without this version; None: without the model."""
        if version is None:
            own = {entry for entry in self.loaded | self.unloaded if entry[0] == name}
            return Wishes(self.loaded - own, self.unloaded - own, self.away | {name})
        entry = (name, version)
        return Wishes(self.loaded - {entry}, self.unloaded | {entry}, self.away)

    def versions(self, manifest: Manifest) -> set[int]:
        """Those to load: the newest, those that an alias names, and what was asked for."""
        if manifest.name in self.away:
            return set()
        wanted = {manifest.latest.version, *manifest.aliases.values()}
        wanted |= {version for name, version in self.loaded if name == manifest.name}
        wanted -= {version for name, version in self.unloaded if name == manifest.name}
        return wanted & {version.version for version in manifest.versions}


@dataclass(frozen=True)
class Lineup:
    """What is served.

    Attributes:
        manifests: every model of the repository, loaded or not, ordered by name.
        seats: what is loaded, ordered by place.
        default_model: of requests that name none.
        rows: by name of each model that is or was loaded, where it is counted, at most `_ring.MAX_MODELS`. A
            name keeps its row for as long as the service lives, so that counts never go back.
    """

    manifests: tuple[Manifest, ...]
    seats: tuple[Seat, ...]
    default_model: str | None
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def places(self) -> tuple[int, ...]:
        """Those in use, ascending."""
        return tuple(seat.place for seat in self.seats)

    def row(self, name: str) -> int:
        """Where a model is counted: with others if no row was left, with no model if it never was loaded."""
        if name in self.rows:
            return self.rows[name]
        return _ring.OTHER_MODELS if self.loaded(name) else _ring.NO_MODEL

    def loaded(self, name: str) -> dict[int, Seat]:
        """A model's loaded versions, oldest first."""
        own = [seat for seat in self.seats if seat.manifest.name == name]
        return {seat.version.version: seat for seat in sorted(own, key=lambda seat: seat.version.version)}

    def to_json(self) -> str:
        """For a child process; see `from_json`."""
        return json.dumps(
            {
                "manifests": [manifest.to_json() for manifest in self.manifests],
                "seats": [[seat.place, seat.manifest.name, seat.version.version] for seat in self.seats],
                "default_model": self.default_model,
                "rows": dict(self.rows),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Lineup":
        """Back from `to_json`."""
        data = json.loads(text)
        manifests = tuple(map(Manifest.from_json, data["manifests"]))
        by_name = {manifest.name: manifest for manifest in manifests}
        seats = tuple(
            Seat(place, by_name[name], by_name[name].find(version)) for place, name, version in data["seats"]
        )
        return cls(manifests, seats, data["default_model"], data["rows"])


def route(manifest: Manifest, loaded: Collection[int]) -> dict[str, int]:
    """By what a request says of the version, the version that answers it.

    That is a number, an alias, `latest`, or nothing at all: then the stable version, where the manifest
    names one, and the latest otherwise. What is not loaded is not in it.
    """
    routes = {str(version): version for version in sorted(loaded)}
    if loaded:
        routes[LATEST] = max(loaded)
    routes |= {alias: version for alias, version in manifest.aliases.items() if version in loaded}
    standard = manifest.aliases.get("stable", routes.get(LATEST))
    if standard is not None and standard in loaded:
        routes[""] = standard
    return routes


def line_up(repository: Repository, wishes: Wishes, places: int, before: Lineup | None = None) -> Lineup:
    """What to serve.

    Args:
        places: how many there are.
        before: what is served until now. Its places are taken, also those that it alone uses: they are
            until its engines have answered what is queued there.

    Raises:
        NoRoom: more places are needed than there are.
    """
    kept = {seat.identity: seat.place for seat in before.seats} if before else {}
    free = [place for place in range(places) if place not in kept.values()]
    seats = []
    for manifest in repository.manifests:
        for number in sorted(wishes.versions(manifest)):
            seat = Seat(-1, manifest, manifest.find(number))
            place = kept.get(seat.identity)
            if place is None:
                if not free:
                    raise NoRoom(
                        f"{manifest.name} version {number} has no room, all {places} places are taken"
                    )
                place = free.pop(0)
            seats.append(replace(seat, place=place))
    ordered = sorted(seats, key=lambda seat: seat.place)
    rows = dict(before.rows) if before else {}
    for seat in seats:
        if len(rows) < _ring.MAX_MODELS:
            rows.setdefault(seat.manifest.name, len(rows))
    return Lineup(repository.manifests, tuple(ordered), repository.default_model, rows)
