"""The models as a front end knows them: what a request must carry, and whether it can be served now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scheduler import _ring
from scheduler.errors import ModelNotReady, UnknownModel
from scheduler.priority import PriorityClass
from scheduler.signature import ModelSignature
from server.lineup import LATEST
from server.repository import ALIASES


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model.

    Attributes:
        index: its place in the arena; of a model of which nothing is loaded, none: -1.
        row: where it is counted; see `server.lineup.Lineup`.
        sha256: by version, of all that are in the repository, lower-case hexadecimal.
        loaded: those of them that are loaded, ascending.
        max_rows: most rows of one request.
        queue_limit: most items of one class, over all front ends; None: that of the class alone.
    """

    index: int
    row: int
    signature: ModelSignature
    description: str
    format: str
    sha256: dict[int, str]
    loaded: tuple[int, ...]
    max_rows: int
    default_class: PriorityClass
    queue_limit: int | None = None


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """A model with its versions.

    Attributes:
        standard: that of a request that names no version; of a model of which nothing is loaded, its newest.
        by_version: what is loaded, by what a request may call it: see `server.lineup.route`.
    """

    standard: ServedModel
    by_version: Mapping[str, ServedModel]


class ModelTable:
    """Finds the model that a request names. Belongs to the event loop."""

    def __init__(self, models: Sequence[ModelRoutes], default_name: str | None) -> None:
        self.ready = False
        self.change(models, default_name)

    def change(self, models: Sequence[ModelRoutes], default_name: str | None) -> None:
        """These from now on. Requests that were routed before keep what they have."""
        self._by_name = {model.standard.signature.name: model for model in models}
        self.default_name = default_name

    def __iter__(self) -> Iterator[ServedModel]:
        """Each model once, at the version of requests that name none."""
        return (model.standard for model in self._by_name.values())

    def loaded(self) -> Iterator[ServedModel]:
        """Every version that is loaded."""
        for routes in self._by_name.values():
            yield from (routes.by_version[str(version)] for version in routes.standard.loaded)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model of this name, or the default one for an empty name, in this version or as routed.

        Raises:
            UnknownModel: there is none, no default is set, or it has no such version.
            ModelNotReady: this version is known, and not loaded.
        """
        if not name:
            if self.default_name is None:
                raise UnknownModel(
                    f"model_name is empty and no default model is set; models are {self._names()}"
                )
            name = self.default_name
        routes = self._by_name.get(name)
        if routes is None:
            raise UnknownModel(f"no model {name[:128]!r}; models are {self._names()}")
        return _version(routes, version) if version else routes.standard

    def row(self, name: str) -> int:
        """Where a request that names this model is counted, whether it can be answered or not."""
        routes = self._by_name.get(name or self.default_name or "")
        return _ring.NO_MODEL if routes is None else routes.standard.row

    def route(self, name: str, version: str) -> ServedModel:
        """The model that answers a request, ready to.

        Raises:
            UnknownModel: no such model or version.
            ModelNotReady: known, but not loaded, or still loading or warming up.
        """
        model = self.find(name, version)
        if model.index < 0:
            raise ModelNotReady(f"{model.signature.name} is not loaded")
        if not self.ready:
            raise ModelNotReady(f"{model.signature.name} is loading or warming up")
        return model

    def _names(self) -> str:
        return ", ".join(self._by_name) or "none"


def _version(routes: ModelRoutes, version: str) -> ServedModel:
    model = routes.by_version.get(version)
    if model is not None:
        return model
    standard = routes.standard
    name = standard.signature.name
    if version in map(str, standard.sha256):
        loaded = ", ".join(map(str, standard.loaded)) or "nothing"
        raise ModelNotReady(f"version {version} of {name} is not loaded, loaded is {loaded}")
    if version in (LATEST, *ALIASES):
        raise UnknownModel(f"no version of {name} that is loaded is {version}", reason="VERSION_NOT_FOUND")
    known = ", ".join(map(str, standard.sha256))
    raise UnknownModel(
        f"no version {version[:32]!r} of {name}; versions are {known}", reason="VERSION_NOT_FOUND"
    )
