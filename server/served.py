"""What a front end makes of the lineup: the models with their versions, ready to be asked for."""

from collections.abc import Sequence

from scheduler.priority import PriorityClass, parse_priority
from server.lineup import Lineup, route
from server.models import ModelRoutes, ServedModel
from server.repository import Manifest
from server.settings import Settings
from server.sizing import frontends

# One request holds at most this part of a front end's slots, so that it cannot shut everybody else out.
MAX_ROWS_PART = 4
NOWHERE = -1


def served(lineup: Lineup, settings: Settings) -> Sequence[ModelRoutes]:
    """Every model of the repository, in its order."""
    return [_routes(manifest, lineup, settings) for manifest in lineup.manifests]


def model_limits(lineup: Lineup) -> dict[int, int]:
    """By place, the queue limits of the models that have one of their own."""
    limits = {seat.place: seat.manifest.scheduler.queue_limit for seat in lineup.seats}
    return {place: limit for place, limit in limits.items() if limit is not None}


def _routes(manifest: Manifest, lineup: Lineup, settings: Settings) -> ModelRoutes:
    seats = lineup.loaded(manifest.name)
    loaded = tuple(seats)
    row = lineup.row(manifest.name)
    models = {
        number: _served(manifest, number, seat.place, row, loaded, settings) for number, seat in seats.items()
    }
    by_version = {name: models[number] for name, number in route(manifest, loaded).items()}
    standard = by_version.get("") or _served(
        manifest, manifest.latest.version, NOWHERE, row, loaded, settings
    )
    return ModelRoutes(standard, by_version)


def _served(
    manifest: Manifest, version: int, place: int, row: int, loaded: tuple[int, ...], settings: Settings
) -> ServedModel:
    share = min(limits.queue_limit for limits in settings.class_limits)
    limit = manifest.scheduler.queue_limit
    share_of_model = min(share, limit or share) // frontends(settings)
    slots = settings.scheduler.slots_per_frontend // MAX_ROWS_PART
    return ServedModel(
        index=place,
        row=row,
        signature=manifest.signature(version),
        description=manifest.description,
        format=manifest.format,
        sha256={version.version: version.sha256 for version in manifest.versions},
        loaded=loaded,
        max_rows=max(1, min(slots, share_of_model)),
        queue_limit=limit,
        default_class=_default_class(manifest, settings),
    )


def _default_class(manifest: Manifest, settings: Settings) -> PriorityClass:
    return parse_priority(manifest.scheduler.default_priority or settings.scheduler.default_class)
