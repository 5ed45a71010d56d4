"""What a server says of the last second and minute, of its promises, and of its health.

Fields are those of the messages in `proto/tickring/v1/status.proto`, which says what they mean. Classes go by
their names, for example "real_time_trading"; None is what nothing was measured of.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlowActivity:
    """The requests of one class, of one model or, where that is empty, of all."""

    model_name: str
    priority: str
    requests_per_s: float
    failed_per_s: float
    shed_per_s: float
    depth: int
    wait_columns: tuple[int, ...]
    wait_p50_ms: float | None
    wait_p99_ms: float | None
    request_p50_ms: float | None
    request_p95_ms: float | None
    request_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class BatchSizeCount:
    """Batches of up to this size, and of more than the entry before."""

    up_to: int
    batches: int


@dataclass(frozen=True, slots=True)
class BucketActivity:
    """Batches that were padded to one size."""

    bucket: int
    batches: int
    compute_p50_ms: float | None
    compute_p95_ms: float | None


@dataclass(frozen=True, slots=True)
class ModelActivity:
    """The batches of one model."""

    model_name: str
    batches_per_s: float
    rows_per_s: float
    mean_batch: float | None
    target_size: int
    batch_sizes: tuple[BatchSizeCount, ...]
    compute_columns: tuple[int, ...]
    compute_p50_ms: float | None
    compute_p99_ms: float | None
    buckets: tuple[BucketActivity, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """A window that ends now; `columns_ms` are the upper bounds of the columns of its small histograms."""

    window_s: float
    covered_s: float
    classes: tuple[FlowActivity, ...]
    flows: tuple[FlowActivity, ...]
    models: tuple[ModelActivity, ...]
    columns_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SloClass:
    """A latency of one class: its bound, with the slack of the class, and what was reached."""

    priority: str
    threshold: float
    value: float
    state: str


@dataclass(frozen=True, slots=True)
class SloObjective:
    """One promise over one window; `name` is that of the setting."""

    name: str
    threshold: float
    state: str
    value: float | None
    good_ratio: float | None
    promised_ratio: float | None
    burn_rate: float | None
    budget_left: float | None
    note: str
    classes: tuple[SloClass, ...]


@dataclass(frozen=True, slots=True)
class SloWindow:
    """All promises over one window."""

    window_s: float
    covered_s: float
    state: str
    requests: int
    objectives: tuple[SloObjective, ...]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One setting to change, why, and the figures that this goes by."""

    rule: str
    setting: str
    text: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SloReport:
    """Whether the service keeps its promises: "met", "missed" or "no_data"."""

    state: str = "no_data"
    windows: tuple[SloWindow, ...] = ()
    recommendations: tuple[Recommendation, ...] = ()


@dataclass(frozen=True, slots=True)
class TriedPrediction:
    """One prediction that a front end made for itself; `error` is empty where it was answered."""

    frontend: str
    model_name: str
    model_version: str
    ms: float
    error: str
    by_model: bool


@dataclass(frozen=True, slots=True)
class DeepHealth:
    """Whether callers get answers: "healthy", "degraded" or "unhealthy", and why."""

    state: str
    reasons: tuple[str, ...]
    predictions: tuple[TriedPrediction, ...]
