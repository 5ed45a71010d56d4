from tickring.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Activity(_message.Message):
    __slots__ = ("window_s", "covered_s", "classes", "flows", "models", "columns_ms")
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    COVERED_S_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    FLOWS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_MS_FIELD_NUMBER: _ClassVar[int]
    window_s: float
    covered_s: float
    classes: _containers.RepeatedCompositeFieldContainer[FlowActivity]
    flows: _containers.RepeatedCompositeFieldContainer[FlowActivity]
    models: _containers.RepeatedCompositeFieldContainer[ModelActivity]
    columns_ms: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, window_s: _Optional[float] = ..., covered_s: _Optional[float] = ..., classes: _Optional[_Iterable[_Union[FlowActivity, _Mapping]]] = ..., flows: _Optional[_Iterable[_Union[FlowActivity, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelActivity, _Mapping]]] = ..., columns_ms: _Optional[_Iterable[float]] = ...) -> None: ...

class FlowActivity(_message.Message):
    __slots__ = ("model_name", "priority", "requests_per_s", "failed_per_s", "shed_per_s", "depth", "wait_columns", "wait_p50_ms", "wait_p99_ms", "request_p50_ms", "request_p95_ms", "request_p99_ms")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    FAILED_PER_S_FIELD_NUMBER: _ClassVar[int]
    SHED_PER_S_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    WAIT_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P50_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_P50_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_P95_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_P99_MS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    priority: _types_pb2.Priority
    requests_per_s: float
    failed_per_s: float
    shed_per_s: float
    depth: int
    wait_columns: _containers.RepeatedScalarFieldContainer[int]
    wait_p50_ms: float
    wait_p99_ms: float
    request_p50_ms: float
    request_p95_ms: float
    request_p99_ms: float
    def __init__(self, model_name: _Optional[str] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., requests_per_s: _Optional[float] = ..., failed_per_s: _Optional[float] = ..., shed_per_s: _Optional[float] = ..., depth: _Optional[int] = ..., wait_columns: _Optional[_Iterable[int]] = ..., wait_p50_ms: _Optional[float] = ..., wait_p99_ms: _Optional[float] = ..., request_p50_ms: _Optional[float] = ..., request_p95_ms: _Optional[float] = ..., request_p99_ms: _Optional[float] = ...) -> None: ...

class ModelActivity(_message.Message):
    __slots__ = ("model_name", "batches_per_s", "rows_per_s", "mean_batch", "target_size", "batch_sizes", "compute_columns", "compute_p50_ms", "compute_p99_ms", "buckets")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    BATCHES_PER_S_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_FIELD_NUMBER: _ClassVar[int]
    TARGET_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_P99_MS_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    batches_per_s: float
    rows_per_s: float
    mean_batch: float
    target_size: int
    batch_sizes: _containers.RepeatedCompositeFieldContainer[BatchSizeCount]
    compute_columns: _containers.RepeatedScalarFieldContainer[int]
    compute_p50_ms: float
    compute_p99_ms: float
    buckets: _containers.RepeatedCompositeFieldContainer[BucketActivity]
    def __init__(self, model_name: _Optional[str] = ..., batches_per_s: _Optional[float] = ..., rows_per_s: _Optional[float] = ..., mean_batch: _Optional[float] = ..., target_size: _Optional[int] = ..., batch_sizes: _Optional[_Iterable[_Union[BatchSizeCount, _Mapping]]] = ..., compute_columns: _Optional[_Iterable[int]] = ..., compute_p50_ms: _Optional[float] = ..., compute_p99_ms: _Optional[float] = ..., buckets: _Optional[_Iterable[_Union[BucketActivity, _Mapping]]] = ...) -> None: ...

class BatchSizeCount(_message.Message):
    __slots__ = ("up_to", "batches")
    UP_TO_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    up_to: int
    batches: int
    def __init__(self, up_to: _Optional[int] = ..., batches: _Optional[int] = ...) -> None: ...

class BucketActivity(_message.Message):
    __slots__ = ("bucket", "batches", "compute_p50_ms", "compute_p95_ms")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_P95_MS_FIELD_NUMBER: _ClassVar[int]
    bucket: int
    batches: int
    compute_p50_ms: float
    compute_p95_ms: float
    def __init__(self, bucket: _Optional[int] = ..., batches: _Optional[int] = ..., compute_p50_ms: _Optional[float] = ..., compute_p95_ms: _Optional[float] = ...) -> None: ...

class SloReport(_message.Message):
    __slots__ = ("state", "windows", "recommendations")
    STATE_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDATIONS_FIELD_NUMBER: _ClassVar[int]
    state: str
    windows: _containers.RepeatedCompositeFieldContainer[SloWindow]
    recommendations: _containers.RepeatedCompositeFieldContainer[Recommendation]
    def __init__(self, state: _Optional[str] = ..., windows: _Optional[_Iterable[_Union[SloWindow, _Mapping]]] = ..., recommendations: _Optional[_Iterable[_Union[Recommendation, _Mapping]]] = ...) -> None: ...

class SloWindow(_message.Message):
    __slots__ = ("window_s", "covered_s", "state", "requests", "objectives")
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    COVERED_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVES_FIELD_NUMBER: _ClassVar[int]
    window_s: float
    covered_s: float
    state: str
    requests: int
    objectives: _containers.RepeatedCompositeFieldContainer[SloObjective]
    def __init__(self, window_s: _Optional[float] = ..., covered_s: _Optional[float] = ..., state: _Optional[str] = ..., requests: _Optional[int] = ..., objectives: _Optional[_Iterable[_Union[SloObjective, _Mapping]]] = ...) -> None: ...

class SloObjective(_message.Message):
    __slots__ = ("name", "threshold", "state", "value", "good_ratio", "promised_ratio", "burn_rate", "budget_left", "note", "classes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    GOOD_RATIO_FIELD_NUMBER: _ClassVar[int]
    PROMISED_RATIO_FIELD_NUMBER: _ClassVar[int]
    BURN_RATE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_LEFT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    threshold: float
    state: str
    value: float
    good_ratio: float
    promised_ratio: float
    burn_rate: float
    budget_left: float
    note: str
    classes: _containers.RepeatedCompositeFieldContainer[SloClass]
    def __init__(self, name: _Optional[str] = ..., threshold: _Optional[float] = ..., state: _Optional[str] = ..., value: _Optional[float] = ..., good_ratio: _Optional[float] = ..., promised_ratio: _Optional[float] = ..., burn_rate: _Optional[float] = ..., budget_left: _Optional[float] = ..., note: _Optional[str] = ..., classes: _Optional[_Iterable[_Union[SloClass, _Mapping]]] = ...) -> None: ...

class SloClass(_message.Message):
    __slots__ = ("priority", "threshold", "value", "state")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    priority: _types_pb2.Priority
    threshold: float
    value: float
    state: str
    def __init__(self, priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., threshold: _Optional[float] = ..., value: _Optional[float] = ..., state: _Optional[str] = ...) -> None: ...

class Recommendation(_message.Message):
    __slots__ = ("rule", "setting", "text", "evidence")
    RULE_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    rule: str
    setting: str
    text: str
    evidence: str
    def __init__(self, rule: _Optional[str] = ..., setting: _Optional[str] = ..., text: _Optional[str] = ..., evidence: _Optional[str] = ...) -> None: ...

class DeepHealth(_message.Message):
    __slots__ = ("state", "reasons", "predictions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    state: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    predictions: _containers.RepeatedCompositeFieldContainer[TriedPrediction]
    def __init__(self, state: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., predictions: _Optional[_Iterable[_Union[TriedPrediction, _Mapping]]] = ...) -> None: ...

class TriedPrediction(_message.Message):
    __slots__ = ("frontend", "model_name", "model_version", "ms", "error", "by_model")
    FRONTEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BY_MODEL_FIELD_NUMBER: _ClassVar[int]
    frontend: str
    model_name: str
    model_version: str
    ms: float
    error: str
    by_model: bool
    def __init__(self, frontend: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., ms: _Optional[float] = ..., error: _Optional[str] = ..., by_model: _Optional[bool] = ...) -> None: ...
