"""The model repository: `<name>/model.toml` beside `<name>/<version>/model.pt`.

Reading it finds every problem at once. A model file is code as much as data, so the engine loads only
bytes whose sha256 it has just compared with the manifest's.
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scheduler import _ring
from scheduler.priority import ALLOWED, parse_priority
from scheduler.signature import ModelSignature, TensorSpec, row_bytes
from server.manifest_tensors import (
    NAME_ALLOWED,
    Problems,
    check_origins,
    is_name,
    read_tensors,
    tensor_from_json,
    tensor_to_json,
)
from server.problems import Problem, SettingsError, shown
from server.settings import MAX_BATCH_SIZE, MAX_COUNT, MAX_LATENCY_BUDGET_MS, powers_of_two

MANIFEST = "model.toml"
FILES = {"torchscript": "model.pt", "exported_program": "model.pt2"}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "auto")
# The arena's bound of a row; kMaxRowBytes in scheduler/native/layout.hpp.
MAX_ROW_BYTES = 1 << 30
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOP_KEYS = (
    "name",
    "description",
    "format",
    "precision",
    "finite_inputs",
    "finite_outputs",
    "inputs",
    "outputs",
    "versions",
    "aliases",
    "scheduler",
)
_VERSION_KEYS = ("sha256",)
# "latest" is one too, but nobody sets it: it is the newest version that is loaded.
ALIASES = ("stable", "canary")
_SCHEDULER_KEYS = (
    "max_batch_size",
    "buckets",
    "latency_budget_ms",
    "bulk_quantum_ms",
    "queue_limit",
    "default_priority",
)
# How TOML calls the Python types.
_KINDS = {str: "text", bool: "true or false", dict: "a table"}


class RepositoryError(Exception):
    """The repository cannot be served; its text has a line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ChecksumMismatch(RepositoryError):
    """A model file is not the one that its manifest names."""


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
    bulk_quantum_ms: float | None = None
    queue_limit: int | None = None
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
    aliases: Mapping[str, int] = field(default_factory=dict)

    @property
    def latest(self) -> ModelVersion:
        """The version that is served unless told otherwise."""
        return self.versions[-1]

    def find(self, number: int) -> ModelVersion:
        """One version. Raises KeyError when there is none of this number."""
        for version in self.versions:
            if version.version == number:
                return version
        raise KeyError(number)

    def resolve_precision(self, setting: str) -> str:
        """The setting `executor.precision`, or the model's own where that says "model"."""
        return self.precision if setting == "model" else setting

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
                "inputs": [tensor_to_json(spec) for spec in self.inputs],
                "outputs": [tensor_to_json(spec) for spec in self.outputs],
                "versions": [[v.version, str(v.path), v.sha256] for v in self.versions],
                "scheduler": asdict(self.scheduler),
                "aliases": dict(self.aliases),
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
                "inputs": tuple(map(tensor_from_json, data["inputs"])),
                "outputs": tuple(map(tensor_from_json, data["outputs"])),
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
    try:
        folders = [folder for folder in sorted(path.iterdir()) if _is_model(folder)]
    except OSError as error:
        raise RepositoryError([f"{path}: must be a readable folder: {error.strerror}"]) from error
    problems: list[str] = []
    manifests = []
    root = _resolved(path)
    for folder in folders:
        reader = _ManifestReader(folder, root)
        manifest = reader.read()
        problems += reader.problems
        if manifest is not None:
            manifests.append(manifest)
    names = [manifest.name for manifest in manifests]
    if not problems and not manifests:
        problems.append(f"{path}: holds no model; needed is <model name>/{MANIFEST}")
    if len(names) > _ring.MAX_MODELS:
        problems.append(f"{path}: holds {len(names)} models, allowed are {_ring.MAX_MODELS}")
    if problems:
        raise RepositoryError(problems)
    try:
        return with_default(Repository(tuple(manifests), None), default_model)
    except SettingsError as error:
        raise RepositoryError([str(problem) for problem in error.problems]) from error


def load_manifest(path: Path, name: str) -> Manifest | None:
    """Reads and checks the manifest of one model; None where the repository has no such model.

    Raises:
        RepositoryError: with every problem at once.
    """
    folder = path / name
    if not is_name(name) or not _is_model(folder):
        return None
    reader = _ManifestReader(folder, _resolved(path))
    manifest = reader.read()
    if manifest is None:
        raise RepositoryError(reader.problems)
    return manifest


def with_default(repository: Repository, name: str | None) -> Repository:
    """With this model for requests that name none; None: the only one, if there is only one.

    Raises:
        SettingsError: there is no such model.
    """
    names = [manifest.name for manifest in repository.manifests]
    if name is None:
        return replace(repository, default_model=names[0] if len(names) == 1 else None)
    if name not in names:
        raise SettingsError([Problem("models.default_model", name, f"must be one of {', '.join(names)}")])
    return replace(repository, default_model=name)


def read_verified(version: ModelVersion) -> bytes:
    """The model file's bytes, read once and checked, so that what was checked is what is loaded.

    Raises:
        ChecksumMismatch: its sha256 is not the manifest's.
        RepositoryError: it cannot be read.
    """
    try:
        content = version.path.read_bytes()
    except OSError as error:
        raise RepositoryError([f"{version.path}: cannot be read: {error.strerror}"]) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != version.sha256:
        raise ChecksumMismatch([f"{version.path}: sha256 is {actual}, the manifest says {version.sha256}"])
    return content


def _is_model(folder: Path) -> bool:
    """Files beside the models and hidden folders such as .git are nobody's business."""
    return folder.is_dir() and (not folder.name.startswith(".") or (folder / MANIFEST).exists())


def _resolved(path: Path) -> Path:
    # Not Path.resolve: that raises on a loop of links.
    return Path(os.path.realpath(path))


class _ManifestReader:
    """Reads one model's folder and collects what is wrong with it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._path = folder / MANIFEST
        self.problems: list[str] = []

    def read(self) -> Manifest | None:
        """None when there were problems."""
        name = self._folder.name
        if not is_name(name):
            # Its path would be repeated in every other line.
            self.problems.append(f"{self._root}: model folder {shown(name)}: {NAME_ALLOWED}")
            return None
        if not self._is_inside(self._path):
            return None
        try:
            data = tomllib.loads(self._path.read_text("utf-8"))
        except OSError as error:
            self.problems.append(f"{self._path}: must be a readable file: {error.strerror}")
            return None
        # tomllib's own, bytes that are no UTF-8; brackets in very many brackets
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{self._path}: must be TOML: {error}")
            return None
        self._check_keys("", data, _TOP_KEYS)
        if data.get("name") != name:
            self._wrong("name", data.get("name"), f"must be the folder's, {name}")
        manifest_format = self._one_of(data, "format", tuple(FILES))
        manifest = Manifest(
            name=name,
            description=self._typed(data, "description", str, ""),
            format=manifest_format,
            precision=self._one_of(data, "precision", PRECISIONS),
            finite_inputs=self._typed(data, "finite_inputs", bool, True),
            finite_outputs=self._typed(data, "finite_outputs", bool, True),
            inputs=self._tensors(data, "inputs"),
            outputs=self._tensors(data, "outputs"),
            versions=self._versions(data, manifest_format),
            scheduler=self._overrides(data),
            aliases=self._aliases(data),
        )
        if not self.problems:
            check_origins(manifest.inputs, manifest.outputs, self._wrong)
        return None if self.problems else manifest

    def _wrong(self, key: str, value: object, allowed: str) -> None:
        self.problems.append(f"{self._path}: {key} = {shown(value)}: {allowed}")

    def _is_inside(self, path: Path) -> bool:
        """Links may point about in the repository, but not out of it."""
        target = _resolved(path)
        if target.is_relative_to(self._root):
            return True
        self.problems.append(f"{path}: leads out of the repository, to {target}")
        return False

    def _check_keys(self, prefix: str, table: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
        for key in table:
            if key not in allowed:
                name = key if is_name(key) else shown(key)
                self._wrong(f"{prefix}{name}", table[key], f"is no key, allowed are {', '.join(allowed)}")

    def _typed(self, table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
        value = table.get(key, default)
        if not isinstance(value, kind):
            self._wrong(key, value, f"must be {_KINDS[kind]}")
            return default
        return value

    def _checked(
        self, table: Mapping[str, Any], where: str, is_good: Callable[[object], bool], allowed: str
    ) -> Any:
        """The value of the last part of `where`; None when it is bad, which is told."""
        value = table.get(where.rpartition(".")[2])
        if is_good(value):
            return value
        self._wrong(where, value, allowed)
        return None

    def _one_of(self, table: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> str:
        value = table.get(key)
        if value not in allowed:
            self._wrong(key, value, f"must be one of {', '.join(allowed)}")
            return allowed[0]
        return str(value)

    def _tensors(self, data: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
        specs = read_tensors(data, key, Problems(self._wrong, self._check_keys, self._checked))
        size = row_bytes(specs)
        if size > MAX_ROW_BYTES:
            self.problems.append(
                f"{self._path}: {key} take {size} bytes per item: must be at most {MAX_ROW_BYTES}"
            )
        return specs

    def _versions(self, data: Mapping[str, Any], model_format: str) -> tuple[ModelVersion, ...]:
        listed = data.get("versions")
        if not isinstance(listed, dict) or not listed:
            self._wrong("versions", listed, "must be at least one [versions.<number>] table")
            return ()
        found = []
        for number, entry in listed.items():
            version = self._version(number, entry, FILES[model_format])
            if version is not None:
                found.append(version)
        try:
            folders = sorted(self._folder.iterdir())
        except OSError as error:  # somebody moves it away just now
            self.problems.append(f"{self._folder}: must be a readable folder: {error.strerror}")
            return ()
        for folder in folders:
            if folder.is_dir() and folder.name.isdecimal() and folder.name not in listed:
                self.problems.append(f"{folder}: has no sha256 under [versions.{folder.name}] in {MANIFEST}")
        return tuple(sorted(found, key=lambda version: version.version))

    def _version(self, number: str, entry: object, file_name: str) -> ModelVersion | None:
        if not _VERSION.fullmatch(number):
            self._wrong("versions", number, "must be 1, 2, 3, ...")
            return None
        where = f"versions.{number}"
        if not isinstance(entry, dict):
            self._wrong(where, entry, "must be a table")
            return None
        self._check_keys(f"{where}.", entry, _VERSION_KEYS)
        digest = self._checked(
            entry, f"{where}.sha256", _is_sha256, "must be 64 lower-case hexadecimal digits"
        )
        file = self._folder / number / file_name
        if not self._is_inside(file):
            return None
        if not file.is_file():
            self.problems.append(f"{file}: is missing, {MANIFEST} lists version {number}")
            return None
        return None if digest is None else ModelVersion(int(number), _resolved(file), digest)

    def _aliases(self, data: Mapping[str, Any]) -> dict[str, int]:
        table = self._typed(data, "aliases", dict, {})
        listed = data.get("versions")
        self._check_keys("aliases.", table, ALIASES)
        for alias, number in table.items():
            known = type(number) is int and isinstance(listed, dict) and str(number) in listed
            if alias in ALIASES and not known:
                self._wrong(f"aliases.{alias}", number, "must be the number of a version under [versions]")
        return dict(table)

    def _overrides(self, data: Mapping[str, Any]) -> SchedulerOverrides:
        table = self._typed(data, "scheduler", dict, {})
        self._check_keys("scheduler.", table, _SCHEDULER_KEYS)
        size, buckets = table.get("max_batch_size"), table.get("buckets")
        limit, priority = table.get("queue_limit"), table.get("default_priority")
        if size is not None and not _is_size(size):
            self._wrong("scheduler.max_batch_size", size, f"must be 1 to {MAX_BATCH_SIZE}")
        if buckets is not None:
            self._check_buckets(buckets, size)
        for name in ("latency_budget_ms", "bulk_quantum_ms"):
            budget = table.get(name)
            if budget is not None and not _is_budget(budget):
                self._wrong(
                    f"scheduler.{name}", budget, f"must be more than 0, at most {MAX_LATENCY_BUDGET_MS}"
                )
        if limit is not None and not (type(limit) is int and 1 <= limit <= MAX_COUNT):
            self._wrong("scheduler.queue_limit", limit, f"must be 1 to {MAX_COUNT}")
        if priority is not None:
            try:
                priority = parse_priority(str(priority)).label
            except ValueError:
                self._wrong("scheduler.default_priority", priority, f"must be {ALLOWED}")
        # Whatever was wrong here never leaves `read`.
        return SchedulerOverrides(
            max_batch_size=size,
            buckets=tuple(buckets) if isinstance(buckets, list) else None,
            latency_budget_ms=table.get("latency_budget_ms"),
            bulk_quantum_ms=table.get("bulk_quantum_ms"),
            queue_limit=limit,
            default_priority=priority,
        )

    def _check_buckets(self, buckets: object, largest: object) -> None:
        if not isinstance(buckets, list) or not buckets or not all(map(_is_size, buckets)):
            self._wrong("scheduler.buckets", buckets, f"must be a list of sizes from 1 to {MAX_BATCH_SIZE}")
        elif buckets != sorted(set(buckets)):
            self._wrong("scheduler.buckets", buckets, "must strictly ascend")
        elif largest is not None and buckets[-1] != largest:
            self._wrong("scheduler.buckets", buckets, f"must end with max_batch_size, {shown(largest)}")
        elif len(buckets) > _ring.MAX_BUCKETS:
            self._wrong("scheduler.buckets", buckets, f"must be at most {_ring.MAX_BUCKETS} sizes")


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_BATCH_SIZE


def _is_budget(value: object) -> bool:
    return isinstance(value, int | float) and value is not True and 0 < value <= MAX_LATENCY_BUDGET_MS
