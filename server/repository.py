"""The model repository: `<name>/model.toml` beside `<name>/<version>/model.pt`.

Reading it finds every problem at once. A model file is code as much as data, so the engine loads only
bytes whose sha256 it has just compared with the manifest's.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.priority import parse_priority
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.settings import powers_of_two

MANIFEST = "model.toml"
FILES = {"torchscript": "model.pt", "exported_program": "model.pt2"}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOP_KEYS = frozenset(
    {"name", "description", "format", "precision", "finite_inputs", "finite_outputs"}
    | {"inputs", "outputs", "versions", "scheduler"}
)
_TENSOR_KEYS = frozenset({"name", "data_type", "shape"})
_SCHEDULER_KEYS = frozenset({"max_batch_size", "buckets", "latency_budget_ms", "default_priority"})


class RepositoryError(Exception):
    """The repository cannot be served; its text has a line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version's file and the digest that its content must have."""

    version: int
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class SchedulerOverrides:
    """What a model sets differently from the settings; None keeps the setting."""

    max_batch_size: int | None = None
    buckets: tuple[int, ...] | None = None
    latency_budget_ms: float | None = None
    default_priority: str | None = None

    def resolve_buckets(self, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        """The model's own batch sizes, or those of the settings."""
        if self.buckets is not None:
            return self.buckets
        return otherwise if self.max_batch_size is None else powers_of_two(self.max_batch_size)


@dataclass(frozen=True)
class Manifest:
    """What `model.toml` says, checked. Versions are in ascending order, at least one."""

    name: str
    description: str
    format: str
    precision: str
    finite_inputs: bool
    finite_outputs: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: tuple[ModelVersion, ...]
    scheduler: SchedulerOverrides = field(default_factory=SchedulerOverrides)

    @property
    def latest(self) -> ModelVersion:
        """The version that is served unless told otherwise."""
        return self.versions[-1]

    def signature(self, version: int) -> ModelSignature:
        """What this version takes and gives."""
        return ModelSignature(
            self.name, version, self.inputs, self.outputs, self.finite_inputs, self.finite_outputs
        )

    def to_json(self) -> str:
        """For a child process; see `from_json`."""
        return json.dumps(
            {
                "name": self.name,
                "description": self.description,
                "format": self.format,
                "precision": self.precision,
                "finite_inputs": self.finite_inputs,
                "finite_outputs": self.finite_outputs,
                "inputs": [_spec_to_json(spec) for spec in self.inputs],
                "outputs": [_spec_to_json(spec) for spec in self.outputs],
                "versions": [[v.version, str(v.path), v.sha256] for v in self.versions],
                "scheduler": {
                    "max_batch_size": self.scheduler.max_batch_size,
                    "buckets": self.scheduler.buckets,
                    "latency_budget_ms": self.scheduler.latency_budget_ms,
                    "default_priority": self.scheduler.default_priority,
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Back from `to_json`."""
        data = json.loads(text)
        scheduler = data.pop("scheduler")
        if scheduler["buckets"] is not None:
            scheduler["buckets"] = tuple(scheduler["buckets"])
        return cls(
            **{
                **data,
                "inputs": tuple(map(_spec_from_json, data["inputs"])),
                "outputs": tuple(map(_spec_from_json, data["outputs"])),
                "versions": tuple(ModelVersion(n, Path(p), digest) for n, p, digest in data["versions"]),
                "scheduler": SchedulerOverrides(**scheduler),
            }
        )


@dataclass(frozen=True, slots=True)
class Repository:
    """All manifests, ordered by name, and the model of requests that name none."""

    manifests: tuple[Manifest, ...]
    default_model: str | None


def load_repository(path: Path, *, default_model: str | None = None) -> Repository:
    """Reads and checks every manifest; model files are only looked for.

    A repository of one model needs no `default_model`.

    Raises:
        RepositoryError: with every problem at once.
    """
    if not path.is_dir():
        raise RepositoryError([f"{path}: is no folder; needed is a model repository"])
    problems: list[str] = []
    manifests = []
    root = path.resolve()
    for folder in sorted(path.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        reader = _ManifestReader(folder, root)
        manifest = reader.read()
        problems += reader.problems
        if manifest is not None:
            manifests.append(manifest)
    names = [manifest.name for manifest in manifests]
    if not problems and not manifests:
        problems.append(f"{path}: holds no model; needed is <model name>/{MANIFEST}")
    if not problems and default_model is not None and default_model not in names:
        problems.append(f"models.default_model = {default_model!r}: must be one of {', '.join(names)}")
    if problems:
        raise RepositoryError(problems)
    if default_model is None and len(names) == 1:
        default_model = names[0]
    return Repository(tuple(manifests), default_model)


def read_verified(version: ModelVersion) -> bytes:
    """The model file's bytes, read once and checked, so that what was checked is what is loaded.

    Raises:
        RepositoryError: it cannot be read, or its sha256 is not the manifest's.
    """
    try:
        content = version.path.read_bytes()
    except OSError as error:
        raise RepositoryError([f"{version.path}: cannot be read: {error.strerror}"]) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != version.sha256:
        raise RepositoryError(
            [f"{version.path}: sha256 is {actual}, the manifest says {version.sha256}; not loaded"]
        )
    return content


class _ManifestReader:
    """Reads one model's folder and collects what is wrong with it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._path = folder / MANIFEST
        self.problems: list[str] = []

    def read(self) -> Manifest | None:
        """None when there were problems."""
        if not _NAME.fullmatch(self._folder.name):
            self._wrong("folder name", self._folder.name, "must be letters, digits, _ . or -")
        try:
            data = tomllib.loads(self._path.read_text())
        except OSError as error:
            self.problems.append(f"{self._path}: cannot be read: {error.strerror}")
            return None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.problems.append(f"{self._path}: is no TOML: {error}")
            return None
        self._check_keys("", data, _TOP_KEYS)
        if data.get("name") != self._folder.name:
            self._wrong("name", data.get("name"), f"must be the folder's, {self._folder.name}")
        manifest_format = self._one_of(data, "format", tuple(FILES))
        manifest = Manifest(
            name=self._folder.name,
            description=self._typed(data, "description", str, ""),
            format=manifest_format,
            precision=self._one_of(data, "precision", PRECISIONS),
            finite_inputs=self._typed(data, "finite_inputs", bool, True),
            finite_outputs=self._typed(data, "finite_outputs", bool, True),
            inputs=self._tensors(data, "inputs"),
            outputs=self._tensors(data, "outputs"),
            versions=self._versions(data, manifest_format),
            scheduler=self._overrides(data),
        )
        return None if self.problems else manifest

    def _wrong(self, key: str, value: object, allowed: str) -> None:
        self.problems.append(f"{self._path}: {key} = {value!r}: {allowed}")

    def _check_keys(self, prefix: str, table: Mapping[str, Any], allowed: frozenset[str]) -> None:
        for key in table:
            if key not in allowed:
                self._wrong(f"{prefix}{key}", table[key], f"is no key; keys are {', '.join(sorted(allowed))}")

    def _typed(self, table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
        value = table.get(key, default)
        if not isinstance(value, kind):
            self._wrong(key, value, f"must be a {kind.__name__}")
            return default
        return value

    def _one_of(self, table: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
        value = table.get(key)
        if value not in allowed:
            self._wrong(key, value, f"must be one of {', '.join(allowed)}")
            return allowed[0]
        return str(value)

    def _tensors(self, data: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
        entries = data.get(key)
        if not isinstance(entries, list) or not entries:
            self._wrong(key, entries, "must be at least one [[...]] table")
            return ()
        specs: list[TensorSpec] = []
        for index, entry in enumerate(entries):
            where = f"{key}[{index}]"
            if not isinstance(entry, dict):
                self._wrong(where, entry, "must be a table")
                continue
            self._check_keys(f"{where}.", entry, _TENSOR_KEYS)
            name, data_type, shape = entry.get("name"), entry.get("data_type"), entry.get("shape")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self._wrong(f"{where}.name", name, "must be letters, digits, _ . or -")
            elif any(spec.name == name for spec in specs):
                self._wrong(f"{where}.name", name, "must differ from the others")
            elif not isinstance(data_type, str) or data_type not in DataType.__members__:
                self._wrong(
                    f"{where}.data_type", data_type, f"must be one of {', '.join(DataType.__members__)}"
                )
            elif not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
                self._wrong(f"{where}.shape", shape, "must be a list of positive sizes, without the batch")
            else:
                specs.append(TensorSpec(name, DataType[data_type], tuple(shape)))
        return tuple(specs)

    def _versions(self, data: Mapping[str, Any], model_format: str) -> tuple[ModelVersion, ...]:
        listed = data.get("versions")
        if not isinstance(listed, dict) or not listed:
            self._wrong("versions", listed, "must be at least one [versions.<number>] table")
            return ()
        found = []
        for number, entry in listed.items():
            where = f"versions.{number}"
            if not re.fullmatch(r"[1-9]\d{0,8}", number):
                self._wrong(where, number, "must be a positive integer")
                continue
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                self._wrong(f"{where}.sha256", digest, "must be 64 lower-case hexadecimal digits")
                continue
            self._check_keys(f"{where}.", entry, frozenset({"sha256"}))
            file = self._folder / number / FILES[model_format]
            if not file.is_file():
                self.problems.append(f"{file}: is missing; {MANIFEST} lists version {number}")
            elif not file.resolve().is_relative_to(self._root):
                self.problems.append(f"{file}: leads out of the repository, to {file.resolve()}")
            else:
                found.append(ModelVersion(int(number), file.resolve(), digest))
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name.isdecimal() and folder.name not in listed:
                self.problems.append(f"{folder}: has no sha256 under [versions.{folder.name}] in {MANIFEST}")
        return tuple(sorted(found, key=lambda version: version.version))

    def _overrides(self, data: Mapping[str, Any]) -> SchedulerOverrides:
        table = self._typed(data, "scheduler", dict, {})
        self._check_keys("scheduler.", table, _SCHEDULER_KEYS)
        size, buckets = table.get("max_batch_size"), table.get("buckets")
        budget, priority = table.get("latency_budget_ms"), table.get("default_priority")
        if size is not None and not (type(size) is int and 1 <= size <= 4096):
            self._wrong("scheduler.max_batch_size", size, "must be 1 to 4096")
            size = None
        if buckets is not None:
            ascending = isinstance(buckets, list) and all(type(b) is int and b > 0 for b in buckets)
            if not ascending or not buckets or buckets != sorted(set(buckets)):
                self._wrong("scheduler.buckets", buckets, "must be ascending positive integers")
                buckets = None
        if budget is not None and not (isinstance(budget, int | float) and budget > 0):
            self._wrong("scheduler.latency_budget_ms", budget, "must be more than 0")
            budget = None
        if priority is not None:
            try:
                parse_priority(str(priority))
            except ValueError as error:
                self._wrong("scheduler.default_priority", priority, str(error))
        return SchedulerOverrides(size, None if buckets is None else tuple(buckets), budget, priority)


def _spec_to_json(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.data_type.name, list(spec.shape)]


def _spec_from_json(entry: list[Any]) -> TensorSpec:
    name, data_type, shape = entry
    return TensorSpec(name, DataType[data_type], tuple(shape))
