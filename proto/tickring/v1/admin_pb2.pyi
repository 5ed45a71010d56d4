from tickring.v1 import model_pb2 as _model_pb2
from tickring.v1 import status_pb2 as _status_pb2
from tickring.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SettingEffect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SETTING_EFFECT_UNSPECIFIED: _ClassVar[SettingEffect]
    SETTING_EFFECT_LIVE: _ClassVar[SettingEffect]
    SETTING_EFFECT_ENGINES: _ClassVar[SettingEffect]
    SETTING_EFFECT_RESTART: _ClassVar[SettingEffect]
SETTING_EFFECT_UNSPECIFIED: SettingEffect
SETTING_EFFECT_LIVE: SettingEffect
SETTING_EFFECT_ENGINES: SettingEffect
SETTING_EFFECT_RESTART: SettingEffect

class LoadModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSettingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSettingsResponse(_message.Message):
    __slots__ = ("version", "settings", "profile")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    version: int
    settings: _containers.RepeatedCompositeFieldContainer[Setting]
    profile: str
    def __init__(self, version: _Optional[int] = ..., settings: _Optional[_Iterable[_Union[Setting, _Mapping]]] = ..., profile: _Optional[str] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("path", "value", "origin", "effect")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    path: str
    value: str
    origin: str
    effect: SettingEffect
    def __init__(self, path: _Optional[str] = ..., value: _Optional[str] = ..., origin: _Optional[str] = ..., effect: _Optional[_Union[SettingEffect, str]] = ...) -> None: ...

class UpdateSettingsRequest(_message.Message):
    __slots__ = ("updates", "expected_version", "validate_only")
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    updates: _containers.RepeatedCompositeFieldContainer[SettingUpdate]
    expected_version: int
    validate_only: bool
    def __init__(self, updates: _Optional[_Iterable[_Union[SettingUpdate, _Mapping]]] = ..., expected_version: _Optional[int] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class SettingUpdate(_message.Message):
    __slots__ = ("path", "value")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    path: str
    value: str
    def __init__(self, path: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class UpdateSettingsResponse(_message.Message):
    __slots__ = ("version", "changed_paths")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_PATHS_FIELD_NUMBER: _ClassVar[int]
    version: int
    changed_paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., changed_paths: _Optional[_Iterable[str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("deep",)
    DEEP_FIELD_NUMBER: _ClassVar[int]
    deep: bool
    def __init__(self, deep: _Optional[bool] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("uptime_ns", "settings_version", "frontends", "engines", "state", "profile", "activity", "readings", "slo", "health")
    class ReadingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_VERSION_FIELD_NUMBER: _ClassVar[int]
    FRONTENDS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    uptime_ns: int
    settings_version: int
    frontends: _containers.RepeatedCompositeFieldContainer[FrontendStatus]
    engines: _containers.RepeatedCompositeFieldContainer[EngineStatus]
    state: str
    profile: str
    activity: _containers.RepeatedCompositeFieldContainer[_status_pb2.Activity]
    readings: _containers.ScalarMap[str, float]
    slo: _status_pb2.SloReport
    health: _status_pb2.DeepHealth
    def __init__(self, uptime_ns: _Optional[int] = ..., settings_version: _Optional[int] = ..., frontends: _Optional[_Iterable[_Union[FrontendStatus, _Mapping]]] = ..., engines: _Optional[_Iterable[_Union[EngineStatus, _Mapping]]] = ..., state: _Optional[str] = ..., profile: _Optional[str] = ..., activity: _Optional[_Iterable[_Union[_status_pb2.Activity, _Mapping]]] = ..., readings: _Optional[_Mapping[str, float]] = ..., slo: _Optional[_Union[_status_pb2.SloReport, _Mapping]] = ..., health: _Optional[_Union[_status_pb2.DeepHealth, _Mapping]] = ...) -> None: ...

class FrontendStatus(_message.Message):
    __slots__ = ("name", "restarts", "admitted", "ended", "open", "undelivered", "corrupt", "slots_free")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    UNDELIVERED_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    name: str
    restarts: int
    admitted: int
    ended: EndedItems
    open: int
    undelivered: int
    corrupt: int
    slots_free: int
    def __init__(self, name: _Optional[str] = ..., restarts: _Optional[int] = ..., admitted: _Optional[int] = ..., ended: _Optional[_Union[EndedItems, _Mapping]] = ..., open: _Optional[int] = ..., undelivered: _Optional[int] = ..., corrupt: _Optional[int] = ..., slots_free: _Optional[int] = ...) -> None: ...

class EndedItems(_message.Message):
    __slots__ = ("result", "error", "non_finite", "expired", "cancelled", "lost")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    result: int
    error: int
    non_finite: int
    expired: int
    cancelled: int
    lost: int
    def __init__(self, result: _Optional[int] = ..., error: _Optional[int] = ..., non_finite: _Optional[int] = ..., expired: _Optional[int] = ..., cancelled: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class EngineStatus(_message.Message):
    __slots__ = ("name", "device", "ready", "restarts", "readings", "taken", "completed", "lost", "discarded", "batches", "corrupt", "waiting", "models")
    class ReadingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    ready: bool
    restarts: int
    readings: _containers.ScalarMap[str, float]
    taken: int
    completed: int
    lost: int
    discarded: int
    batches: int
    corrupt: int
    waiting: int
    models: _containers.RepeatedCompositeFieldContainer[EngineModelStatus]
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., ready: _Optional[bool] = ..., restarts: _Optional[int] = ..., readings: _Optional[_Mapping[str, float]] = ..., taken: _Optional[int] = ..., completed: _Optional[int] = ..., lost: _Optional[int] = ..., discarded: _Optional[int] = ..., batches: _Optional[int] = ..., corrupt: _Optional[int] = ..., waiting: _Optional[int] = ..., models: _Optional[_Iterable[_Union[EngineModelStatus, _Mapping]]] = ...) -> None: ...

class EngineModelStatus(_message.Message):
    __slots__ = ("model_name", "model_version", "queued", "target_size", "item_ns", "latency")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    TARGET_SIZE_FIELD_NUMBER: _ClassVar[int]
    ITEM_NS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    queued: _containers.RepeatedCompositeFieldContainer[QueuedItems]
    target_size: int
    item_ns: int
    latency: _containers.RepeatedCompositeFieldContainer[BucketLatency]
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., queued: _Optional[_Iterable[_Union[QueuedItems, _Mapping]]] = ..., target_size: _Optional[int] = ..., item_ns: _Optional[int] = ..., latency: _Optional[_Iterable[_Union[BucketLatency, _Mapping]]] = ...) -> None: ...

class QueuedItems(_message.Message):
    __slots__ = ("priority", "items")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    priority: _types_pb2.Priority
    items: int
    def __init__(self, priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., items: _Optional[int] = ...) -> None: ...

class BucketLatency(_message.Message):
    __slots__ = ("bucket", "median_ns", "high_ns")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_NS_FIELD_NUMBER: _ClassVar[int]
    HIGH_NS_FIELD_NUMBER: _ClassVar[int]
    bucket: int
    median_ns: int
    high_ns: int
    def __init__(self, bucket: _Optional[int] = ..., median_ns: _Optional[int] = ..., high_ns: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
