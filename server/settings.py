"""Every setting: its type, its default and its bounds.

Settings come in layers, the later ones winning: defaults, profile, file, environment, command line. They
are validated once, as a whole, and never change afterwards.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler import _ring
from scheduler.priority import ClassLimits, PriorityClass, parse_priority

ENV_PREFIX = "TICKRING_"
ENV_DELIMITER = "__"
# Of the client, in the same namespace.
FOREIGN_ENVIRONMENT = frozenset({"TICKRING_TARGET", "TICKRING_TOKEN"})
DEFAULT_PROFILE = "market_hours"
PROFILES = ("market_hours", "off_hours", "stress_test")


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad setting: where, what, and what is allowed."""

    path: str
    value: object
    allowed: str

    def __str__(self) -> str:
        return f"{self.path} = {self.value!r}: {self.allowed}"


class SettingsError(Exception):
    """The settings cannot be used; its text has a line per problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def _priority_name(text: str) -> str:
    return parse_priority(text).name.lower()


Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]
Ratio = Annotated[float, Field(gt=0, le=1)]
PriorityName = Annotated[str, AfterValidator(_priority_name)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerTable(_Table):
    """Where it listens and how much it takes from one peer. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Port = 8002
    admin_port: Port = 8003
    frontends: Literal["auto"] | Annotated[int, Field(ge=1, le=_ring.MAX_FRONTENDS)] = "auto"
    max_message_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 16 << 20
    max_in_flight_per_stream: Count = 256
    max_concurrent_rpcs: Count = 4096
    drain_grace_s: Annotated[float, Field(ge=0, le=3600)] = 30.0


class TlsTable(_Table):
    """Files of the server's certificate, and of the authority that clients must come from."""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key must be given together")
        return self


class AuthTable(_Table):
    """Who may call."""

    tokens_file: Path | None = None


class ModelsTable(_Table):
    """Which repository is served. No repository: the bundled one."""

    repository: Path | None = None
    default_model: str | None = None


class ClassTable(_Table):
    """One priority class; what is not set keeps the class's default."""

    slack_ms: Milliseconds
    max_wait_ms: Milliseconds
    queue_limit: Count = 2048
    default_timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)]

    def limits(self) -> ClassLimits:
        """The same in nanoseconds, as the scheduler takes it."""
        return ClassLimits(
            slack_ns=int(self.slack_ms * 1e6),
            max_wait_ns=int(self.max_wait_ms * 1e6),
            queue_limit=self.queue_limit,
            default_timeout_ns=int(self.default_timeout_ms * 1e6),
        )


_CLASS_DEFAULTS: dict[str, dict[str, float]] = {
    "real_time_trading": {"slack_ms": 0, "max_wait_ms": 0, "default_timeout_ms": 100},
    "market_data_update": {"slack_ms": 5, "max_wait_ms": 1, "default_timeout_ms": 200},
    "batch_processing": {"slack_ms": 50, "max_wait_ms": 5, "default_timeout_ms": 1000},
    "historical_analysis": {"slack_ms": 500, "max_wait_ms": 10, "default_timeout_ms": 10000},
    "background_tasks": {"slack_ms": 2000, "max_wait_ms": 20, "default_timeout_ms": 60000},
}


class ClassesTable(_Table):
    """The five classes, most urgent first."""

    real_time_trading: ClassTable
    market_data_update: ClassTable
    batch_processing: ClassTable
    historical_analysis: ClassTable
    background_tasks: ClassTable


class SchedulerTable(_Table):
    """How batches are formed. `buckets` empty: the powers of two up to `max_batch_size`."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    buckets: tuple[Count, ...] = ()
    adaptive: bool = True
    latency_budget_ms: Annotated[float, Field(gt=0, le=60_000)] = 5.0
    bulk_quantum_ms: Annotated[float, Field(gt=0, le=60_000)] = 10.0
    reserved_instances: Annotated[int, Field(ge=0, le=16)] = 0
    spin_us: Literal["auto"] | Annotated[int, Field(ge=0, le=100_000)] = "auto"
    slots_per_frontend: Annotated[int, Field(ge=1, le=_ring.MAX_SLOTS_PER_FRONTEND)] = 2048
    default_class: PriorityName = "batch_processing"
    classes: ClassesTable

    @model_validator(mode="after")
    def _buckets_fit(self) -> Self:
        if self.buckets:
            if list(self.buckets) != sorted(set(self.buckets)):
                raise ValueError("buckets must ascend")
            if self.buckets[-1] != self.max_batch_size:
                raise ValueError(f"the last of buckets must be max_batch_size, {self.max_batch_size}")
        if self.max_batch_size > self.slots_per_frontend:
            raise ValueError(
                f"max_batch_size {self.max_batch_size} must be at most "
                f"slots_per_frontend, {self.slots_per_frontend}"
            )
        return self

    @cached_property
    def resolved_buckets(self) -> tuple[int, ...]:
        """The batch sizes to warm up, ascending."""
        return self.buckets or powers_of_two(self.max_batch_size)


class ExecutorTable(_Table):
    """What models run on."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    instances: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    precision: Literal["model", "fp32", "tf32", "fp16", "bf16"] = "model"
    cuda_graphs: bool = True
    memory_fraction: Ratio = 0.9
    cpu_threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    cpu_affinity: tuple[Annotated[int, Field(ge=0)], ...] = ()
    gpu_utilization_high: Ratio = 0.9
    gpu_utilization_low: Ratio = 0.7
    memory_utilization_high: Ratio = 0.9


class CacheTable(_Table):
    """Answers kept for repeated requests."""

    enabled: bool = False
    entries: Count = 10_000
    ttl_s: Annotated[float, Field(gt=0)] = 60.0
    redis_url: str | None = None


class TelemetryTable(_Table):
    """Logs and traces."""

    otlp_endpoint: str | None = None
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class SloTable(_Table):
    """What the service promises; benchmarks and alerts compare with it."""

    p50_ms: Milliseconds = 50.0
    p95_ms: Milliseconds = 80.0
    p99_ms: Milliseconds = 100.0
    max_ms: Milliseconds = 200.0
    min_rps: Annotated[float, Field(ge=0)] = 50.0
    target_rps: Annotated[float, Field(ge=0)] = 200.0
    max_error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01


class Settings(_Table):
    """All of them."""

    server: ServerTable = ServerTable()
    tls: TlsTable = TlsTable()
    auth: AuthTable = AuthTable()
    models: ModelsTable = ModelsTable()
    scheduler: SchedulerTable
    executor: ExecutorTable = ExecutorTable()
    cache: CacheTable = CacheTable()
    telemetry: TelemetryTable = TelemetryTable()
    slo: SloTable = SloTable()

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = [self.server.grpc_port, self.server.http_port, self.server.admin_port]
        fixed = [port for port in ports if port]
        if len(set(fixed)) != len(fixed):
            raise ValueError(f"grpc_port, http_port and admin_port must differ, they are {ports}")
        return self

    @cached_property
    def class_limits(self) -> tuple[ClassLimits, ...]:
        """By class index."""
        classes = self.scheduler.classes
        return tuple(getattr(classes, member.name.lower()).limits() for member in PriorityClass)

    def to_toml(self) -> str:
        """A file that loads back to these settings; what is not set is left out."""
        return _toml(self.model_dump(mode="json", exclude_none=True))


def load_settings(
    overrides: Mapping[str, Any],
    *,
    config: Path | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merges the layers and validates the result.

    Args:
        overrides: nested tables from the command line.
        profile: one of `PROFILES`; None is the default one.

    Raises:
        SettingsError: with every problem at once.
    """
    layers: list[Mapping[str, Any]] = [{"scheduler": {"classes": _CLASS_DEFAULTS}}]
    layers.append(_read_profile(profile or DEFAULT_PROFILE))
    if config is not None:
        layers.append(_read_file(config))
    layers.append(_read_environment(os.environ if environ is None else environ))
    layers.append(overrides)
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_problems(error)) from error


def bundled_repository() -> Path:
    """The model repository that ships with the package, in a checkout or in an installed wheel."""
    package = Path(str(resources.files("server")))
    installed = package / "bundled_models"
    return installed if installed.is_dir() else package.parent / "models"


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, … and `largest` itself."""
    sizes = []
    size = 1
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)


def _read_profile(name: str) -> Mapping[str, Any]:
    if name not in PROFILES:
        raise SettingsError([Problem("profile", name, f"must be one of {', '.join(PROFILES)}")])
    text = (resources.files("server") / "profiles" / f"{name}.toml").read_text()
    return tomllib.loads(text)


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            [Problem("config", str(path), f"must be a readable file: {error.strerror}")]
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([Problem("config", str(path), f"must be TOML: {error}")]) from error


def _read_environment(environ: Mapping[str, str]) -> Mapping[str, Any]:
    tables: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in FOREIGN_ENVIRONMENT:
            continue
        path = name.removeprefix(ENV_PREFIX).lower().split(ENV_DELIMITER)
        table = tables
        for part in path[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise SettingsError([Problem(name, text, "must not be both a table and a value")])
        table[path[-1]] = _environment_value(text)
    return tables


def _environment_value(text: str) -> Any:
    """Lists are written as in TOML; everything else is text that the setting's type reads."""
    if text.startswith("["):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text
    return text


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = _copy(value)


def _copy(value: Any) -> Any:
    return {name: _copy(part) for name, part in value.items()} if isinstance(value, Mapping) else value


def _problems(error: ValidationError) -> list[Problem]:
    """One per setting: pydantic has one per branch of a union such as `"auto"` or a number."""
    found: dict[str, Problem] = {}
    for entry in error.errors():
        problem = _problem(entry)
        earlier = found.get(problem.path)
        if earlier is not None:
            problem = Problem(problem.path, problem.value, f"{earlier.allowed}; or {problem.allowed}")
        found[problem.path] = problem
    return list(found.values())


def _problem(entry: Any) -> Problem:
    # The last part may be pydantic's name of a union's branch, which is nobody's setting.
    parts = [str(part) for part in entry["loc"] if not str(part).startswith(("literal[", "constrained-"))]
    path = ".".join(parts)
    kind = entry["type"]
    if kind == "extra_forbidden":
        return Problem(path, _shown(entry["input"]), "is no setting")
    if kind == "value_error":
        return Problem(path or "settings", _shown(entry["input"]), str(entry["ctx"]["error"]))
    message = str(entry["msg"]).removeprefix("Input ")
    return Problem(path, _shown(entry["input"]), message[0].lower() + message[1:])


def _shown(value: Any) -> Any:
    """A whole table would drown the message."""
    return "…" if isinstance(value, Mapping | BaseModel) else value


def _toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    lines = []
    values = {name: value for name, value in tables.items() if not isinstance(value, Mapping)}
    if values:
        if prefix:
            lines.append(f"[{prefix}]")
        lines += [f"{name} = {_toml_value(value)}" for name, value in values.items()]
        lines.append("")
    for name, value in tables.items():
        if isinstance(value, Mapping):
            lines.append(_toml(value, f"{prefix}.{name}" if prefix else name))
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return str(value)
