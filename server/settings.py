"""Every setting: its type, its default and its bounds.

Where their values come from is for `server.layers` and `server.configuration`. Relative paths start from the
working directory.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo

from scheduler import _ring
from scheduler.priority import ALLOWED, DEFAULT_LIMITS, ClassLimits, PriorityClass, parse_priority
from server.problems import Problem, SettingsError, shown

MAX_BATCH_SIZE = 4096
MAX_LATENCY_BUDGET_MS = 60_000
MAX_COUNT = 1 << 30
MAX_ENGINES = 16  # the arena's

_NS_PER_MS = 1_000_000


def _no_bool(value: object) -> object:
    # To Python, and so to pydantic, true is 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _not_empty(value: object) -> object:
    # An empty path would be the working directory.
    if value in ("", Path()):
        raise ValueError("must not be empty")
    return value


def _auto_or(low: int, high: int) -> BeforeValidator:
    """Checked before the union is: pydantic has an error for each of its branches."""

    def check(value: object) -> object:
        readable = isinstance(value, int | str) and re.fullmatch("auto|[0-9]{1,9}", str(value))
        if readable and (value == "auto" or low <= int(str(value)) <= high):
            return value
        raise ValueError(f"must be auto or {low} to {high}")

    return BeforeValidator(check)


def _device(text: str) -> str:
    """One word, or a list with an engine for each entry: its entries in their plainest form."""
    if text in ("auto", "cuda"):
        return text
    entries = [re.sub("(?<=^cuda:)0+(?=[0-9])", "", entry.strip()) for entry in text.split(",")]
    bad = [entry for entry in entries if not re.fullmatch("cpu|cuda:[0-9]{1,3}", entry)]
    if bad:
        named = f", not {shown(', '.join(bad))}" if len(entries) > 1 else ""
        raise ValueError(f"must be auto, cpu, cuda, cuda:N or a list of cpu and cuda:N{named}")
    if twice := sorted({entry for entry in entries if entry != "cpu" and entries.count(entry) > 1}):
        raise ValueError(f"must name each GPU once, not {', '.join(twice)} twice")
    if len(entries) > MAX_ENGINES:
        raise ValueError(f"must name at most {MAX_ENGINES} devices")
    return ",".join(entries)


def _priority_label(text: str) -> str:
    try:
        return parse_priority(text).label
    except ValueError:
        raise ValueError(f"must be {ALLOWED}") from None


def _own_port(port: int, info: ValidationInfo) -> int:
    # `info.data` has the settings above this one in its table, those that are good.
    for other in ("grpc_port", "http_port"):
        if port != 0 and port == info.data.get(other):
            raise ValueError(f"must differ from {other}")
    return port


def _collector(url: str) -> str:
    """A place to send traces to. What OpenTelemetry would take for something else is refused."""
    if re.fullmatch(r"https?://[^\s/@?#]+/?", url) is None:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
    return url


def _with_cert(file: Path | None, info: ValidationInfo) -> Path | None:
    """The key needs a certificate and the certificate a key; a client's authority needs both."""
    cert = info.data.get("cert")
    misfit = file is not None if cert is None else file is None and info.field_name == "key"
    if "cert" in info.data and misfit:
        raise ValueError("must be set together with tls.cert")
    return file


def _up_to_max_batch_size(buckets: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
    if list(buckets) != sorted(set(buckets)):
        raise ValueError("must strictly ascend")
    if len(buckets) > _ring.MAX_BUCKETS:
        raise ValueError(f"must be at most {_ring.MAX_BUCKETS} sizes")
    largest = info.data.get("max_batch_size")
    if buckets and largest is not None and buckets[-1] != largest:
        raise ValueError(f"must end with max_batch_size, {largest}")
    return buckets


def _not_above_high(low: float, info: ValidationInfo) -> float:
    high = info.data.get("gpu_utilization_high")
    if high is not None and low > high:
        raise ValueError(f"must be at most gpu_utilization_high, {high:g}")
    return low


def _holds_a_batch(slots: int, info: ValidationInfo) -> int:
    batch = info.data.get("max_batch_size")
    if batch is not None and slots < batch:
        raise ValueError(f"must be at least max_batch_size, {batch}")
    return slots


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
Count = Annotated[Whole, Field(ge=1, le=MAX_COUNT)]
Milliseconds = Annotated[Number, Field(ge=0, le=3_600_000)]
Budget = Annotated[Number, Field(gt=0, le=MAX_LATENCY_BUDGET_MS)]
Ratio = Annotated[Number, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
File = Annotated[Path, BeforeValidator(_not_empty)]
Auto = Literal["auto"]


class _Table(BaseModel):
    # Inf and NaN are no settings, and JSON could not carry them to a child. Defaults are validated
    # because the bound of one may be the value of another.
    model_config = {"frozen": True, "extra": "forbid", "validate_default": True, "allow_inf_nan": False}


class ServerTable(_Table):
    """Where it listens and how much it takes from one peer. Port 0 picks a free one.

    Of cancels, idleness and age 0 is no limit; docs/security.md says what each of them stops.
    """

    host: Text = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Annotated[Port, AfterValidator(_own_port)] = 8002
    admin_port: Annotated[Port, AfterValidator(_own_port)] = 8003
    frontends: Annotated[int | Auto, _auto_or(1, _ring.MAX_FRONTENDS)] = "auto"
    max_message_bytes: Annotated[Whole, Field(ge=1024, le=1 << 30)] = 16 << 20
    max_in_flight_per_stream: Count = 256
    max_concurrent_rpcs: Count = 4096
    max_metadata_bytes: Annotated[Whole, Field(ge=1024, le=1 << 20)] = 16 << 10
    max_streams_per_connection: Count = 2048
    max_cancels_per_s: Annotated[Number, Field(ge=0, le=1e6)] = 1000.0
    max_connection_idle_s: Annotated[Number, Field(ge=0, le=864_000)] = 3600.0
    max_connection_age_s: Annotated[Number, Field(ge=0, le=864_000)] = 0.0
    handshake_timeout_s: Annotated[Number, Field(gt=0, le=120)] = 10.0
    min_ping_interval_s: Annotated[Number, Field(ge=0, le=3600)] = 10.0
    keepalive_s: Annotated[Number, Field(gt=0, le=3600)] = 60.0
    drain_grace_s: Annotated[Number, Field(ge=0, le=3600)] = 30.0

    def target(self, port: int) -> str:
        """The host with this port, as gRPC takes it."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class TlsTable(_Table):
    """Files of the server's certificate, and of the authority that clients must come from."""

    cert: File | None = None
    key: Annotated[File | None, AfterValidator(_with_cert)] = None
    client_ca: Annotated[File | None, AfterValidator(_with_cert)] = None


class AuthTable(_Table):
    """Who may call. `allow_clear_text`: with tokens, but without TLS, on other addresses than loopback."""

    tokens_file: File | None = None
    allow_clear_text: bool = False


class ModelsTable(_Table):
    """Which repository is served. No repository: the bundled one.

    `poll_s`: how often it is looked at for changes; 0: never. `max_loaded`: model versions that are loaded at
    once. `max_row_bytes`: room for the inputs, or the outputs, of one item of models that come later; 0: what
    the models at the start need.
    """

    repository: File | None = None
    default_model: Text | None = None
    poll_s: Annotated[Number, Field(ge=0, le=86_400)] = 0.0
    max_loaded: Annotated[Whole, Field(ge=1, le=_ring.MAX_MODELS)] = 16
    max_row_bytes: Annotated[Whole, Field(ge=0, le=1 << 30)] = 0


class ClassTable(_Table):
    """One priority class; `queue_limit` counts items over all front ends and models."""

    slack_ms: Milliseconds
    max_wait_ms: Milliseconds
    queue_limit: Count
    default_timeout_ms: Annotated[Number, Field(gt=0, le=3_600_000)]

    @classmethod
    def of(cls, limits: ClassLimits) -> Self:
        """From the scheduler's nanoseconds."""
        return cls(
            slack_ms=limits.slack_ns / _NS_PER_MS,
            max_wait_ms=limits.max_wait_ns / _NS_PER_MS,
            queue_limit=limits.queue_limit,
            default_timeout_ms=limits.default_timeout_ns / _NS_PER_MS,
        )

    def limits(self) -> ClassLimits:
        """The same in nanoseconds, as the scheduler takes it."""
        return ClassLimits(
            slack_ns=round(self.slack_ms * _NS_PER_MS),
            max_wait_ns=round(self.max_wait_ms * _NS_PER_MS),
            queue_limit=self.queue_limit,
            default_timeout_ns=round(self.default_timeout_ms * _NS_PER_MS),
        )


class ClassesTable(_Table):
    """The five classes, most urgent first."""

    real_time_trading: ClassTable = ClassTable.of(DEFAULT_LIMITS[PriorityClass.REAL_TIME_TRADING.index])
    market_data_update: ClassTable = ClassTable.of(DEFAULT_LIMITS[PriorityClass.MARKET_DATA_UPDATE.index])
    batch_processing: ClassTable = ClassTable.of(DEFAULT_LIMITS[PriorityClass.BATCH_PROCESSING.index])
    historical_analysis: ClassTable = ClassTable.of(DEFAULT_LIMITS[PriorityClass.HISTORICAL_ANALYSIS.index])
    background_tasks: ClassTable = ClassTable.of(DEFAULT_LIMITS[PriorityClass.BACKGROUND_TASKS.index])


class SchedulerTable(_Table):
    """How batches are formed. `buckets` empty: the powers of two up to `max_batch_size`.

    `early_refusal`: refuse at the door, or drop from the queue, what cannot be done by its deadline any more,
    and bulk that would delay urgent work. `spin_us`: how long engines and front ends look for work or
    answers before they sleep; 0: not at all, auto: 10 ms and 2 ms where cores are left.
    """

    max_batch_size: Annotated[Whole, Field(ge=1, le=MAX_BATCH_SIZE)] = 64
    buckets: Annotated[tuple[Count, ...], AfterValidator(_up_to_max_batch_size)] = ()
    adaptive: bool = True
    latency_budget_ms: Budget = 10.0
    bulk_quantum_ms: Budget = 10.0
    early_refusal: bool = True
    reserved_instances: Annotated[Whole, Field(ge=0, le=16)] = 0
    spin_us: Annotated[int | Auto, _auto_or(0, 100_000)] = "auto"
    slots_per_frontend: Annotated[
        Whole, Field(ge=1, le=_ring.MAX_SLOTS_PER_FRONTEND), AfterValidator(_holds_a_batch)
    ] = 5120
    default_class: Annotated[str, AfterValidator(_priority_label)] = "batch_processing"
    classes: ClassesTable = ClassesTable()

    @cached_property
    def resolved_buckets(self) -> tuple[int, ...]:
        """The batch sizes to warm up, ascending."""
        return self.buckets or powers_of_two(self.max_batch_size)


class ExecutorTable(_Table):
    """What models run on.

    `device`: auto (every visible GPU, else the CPU), cpu, cuda (every visible GPU), cuda:N, or a list of
    cpu and cuda:N separated by commas. Each device has an engine of its own.

    `cpu_backend`: what computes on a CPU: torch, onnx (ONNX Runtime, where a model can be converted and
    answers the same; torch where not), or auto, whichever is faster.

    `cuda_spin`: wait for a GPU in a loop, which is shorter and takes a core for each stream that computes.

    `gpu_utilization_high`: from which batches shrink, until `gpu_utilization_low`; 1: it does not count.

    `host_load_high`: load average per core from which batches shrink. `stall_timeout_s`: a process that makes
    no progress with work before it for so long is restarted. `prepare_timeout_s`: how long an engine that is
    to take over from another may load and warm up.
    """

    device: Annotated[str, AfterValidator(_device)] = "auto"
    instances: Annotated[int | Auto, _auto_or(1, 64)] = "auto"
    precision: Literal["model", "auto", "fp32", "tf32", "fp16", "bf16"] = "model"
    cpu_backend: Literal["auto", "torch", "onnx"] = "auto"
    cuda_graphs: bool = True
    memory_fraction: Ratio = 0.9
    cpu_threads: Annotated[int | Auto, _auto_or(1, 1024)] = "auto"
    cpu_affinity: tuple[Annotated[Whole, Field(ge=0, le=65535)], ...] = ()
    cuda_spin: bool = False
    gpu_utilization_high: Ratio = 1.0
    gpu_utilization_low: Annotated[Ratio, AfterValidator(_not_above_high)] = 0.7
    memory_utilization_high: Ratio = 0.9
    host_load_high: Annotated[Number, Field(gt=0)] = 4.0
    stall_timeout_s: Annotated[Number, Field(ge=0.5, le=3600)] = 5.0
    prepare_timeout_s: Annotated[Number, Field(ge=1, le=3600)] = 300.0


class CacheTable(_Table):
    """Answers kept for repeated requests."""

    enabled: bool = False
    entries: Count = 10_000
    ttl_s: Annotated[Number, Field(gt=0)] = 60.0
    redis_url: Text | None = None


class CalendarTable(_Table):
    """What `profile = "auto"` goes by: an exchange of exchange-calendars, and how long before its open the
    profile of market hours starts.
    """

    exchange: Text = "XNYS"
    lead_s: Annotated[Number, Field(ge=0, le=3600)] = 60.0


class TelemetryTable(_Table):
    """Logs and traces."""

    otlp_endpoint: Annotated[Text, AfterValidator(_collector)] | None = None
    trace_sample_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.01
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class SloTable(_Table):
    """What the service promises; benchmarks and alerts compare with it."""

    p50_ms: Milliseconds = 50.0
    p95_ms: Milliseconds = 80.0
    p99_ms: Milliseconds = 100.0
    max_ms: Milliseconds = 200.0
    min_rps: Annotated[Number, Field(ge=0)] = 50.0
    target_rps: Annotated[Number, Field(ge=0)] = 200.0
    max_error_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.01


class Settings(_Table):
    """All of them."""

    server: ServerTable = ServerTable()
    tls: TlsTable = TlsTable()
    auth: AuthTable = AuthTable()
    models: ModelsTable = ModelsTable()
    scheduler: SchedulerTable = SchedulerTable()
    executor: ExecutorTable = ExecutorTable()
    cache: CacheTable = CacheTable()
    calendar: CalendarTable = CalendarTable()
    telemetry: TelemetryTable = TelemetryTable()
    slo: SloTable = SloTable()

    @property
    def class_limits(self) -> tuple[ClassLimits, ...]:
        """By class index."""
        classes = self.scheduler.classes
        return tuple(getattr(classes, member.label).limits() for member in PriorityClass)

    def with_classes(self, classes: object) -> Self:
        """These settings with another `scheduler.classes` table, as `model_dump` gives it."""
        table = ClassesTable.model_validate(classes)
        return self.model_copy(update={"scheduler": self.scheduler.model_copy(update={"classes": table})})

    def leaves(self) -> dict[str, Any]:
        """Every setting's value by its dotted path, such as `scheduler.adaptive`, as JSON has it."""
        return dict(_leaves(self.model_dump(mode="json"), ""))


def bundled_repository() -> Path:
    """The model repository that ships with the package.

    Raises:
        SettingsError: this installation has none.
    """
    package = Path(str(resources.files("server")))
    installed = package / "bundled_models"
    if installed.is_dir():
        return installed
    checkout = package.parent
    # Beside an installed package, a folder of that name would be somebody else's.
    if (checkout / "pyproject.toml").is_file() and (checkout / "models").is_dir():
        return checkout / "models"
    raise SettingsError([Problem("models.repository", None, "must be set, no models are bundled here")])


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, … and `largest` itself."""
    return (*(1 << power for power in range((largest - 1).bit_length())), largest)


def _leaves(tables: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
