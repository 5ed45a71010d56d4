"""The models as a front end knows them: what a request must carry, and whether it can be served now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.errors import ModelNotReady, UnknownModel
from scheduler.priority import PriorityClass
from scheduler.signature import ModelSignature


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the repository, at the version that requests are routed to.

    Attributes:
        index: its lanes in the arena.
        sha256: by version, lower-case hexadecimal.
        max_rows: most rows of one request.
        queue_limit: most items of one class, over all front ends; None: that of the class alone.
    """

    index: int
    signature: ModelSignature
    description: str
    format: str
    sha256: dict[int, str]
    max_rows: int
    default_class: PriorityClass
    queue_limit: int | None = None


class ModelTable:
    """Finds the model that a request names. Belongs to the event loop."""

    def __init__(self, models: Sequence[ServedModel], default_name: str | None) -> None:
        self._by_name = {model.signature.name: model for model in models}
        self.default_name = default_name
        self.ready = False

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def find(self, name: str) -> ServedModel:
        """The model of this name, or the default one for an empty name.

        Raises:
            UnknownModel: there is none, or no default is set.
        """
        if not name:
            if self.default_name is None:
                raise UnknownModel(
                    f"model_name is empty and no default model is set; models are {self._names()}"
                )
            name = self.default_name
        model = self._by_name.get(name)
        if model is None:
            raise UnknownModel(f"no model {name[:128]!r}; models are {self._names()}")
        return model

    def route(self, name: str, version: str) -> ServedModel:
        """The model that answers a request, ready to.

        Raises:
            UnknownModel: no such model or version.
            ModelNotReady: known, but still loading or warming up.
        """
        model = self.find(name)
        if version and version != str(model.signature.version):
            known = ", ".join(str(v) for v in model.sha256)
            if version in map(str, model.sha256):
                raise ModelNotReady(
                    f"version {version} of {model.signature.name} is not loaded, "
                    f"loaded is {model.signature.version}"
                )
            raise UnknownModel(
                f"no version {version[:32]!r} of {model.signature.name}; versions are {known}",
                reason="VERSION_NOT_FOUND",
            )
        if not self.ready:
            raise ModelNotReady(f"{model.signature.name} is loading or warming up")
        return model

    def _names(self) -> str:
        return ", ".join(self._by_name) or "none"
