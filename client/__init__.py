"""The async clients of tickring: `Client` and `AdminClient`, what they return, and what they raise."""

from client.admin import AdminClient
from client.admin_info import (
    BucketLatency,
    EngineModelStatus,
    EngineStatus,
    FrontendStatus,
    ServerStatus,
    SettingInfo,
    SettingsChange,
    SettingsInfo,
)
from client.channel import TlsFiles
from client.client import Client
from client.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    PredictionError,
    SettingsChanged,
    Unauthenticated,
    Unavailable,
)
from client.model_info import ModelInfo, TensorInfo, VersionInfo
from client.prediction import Prediction, Timing
from client.priority import Priority
from client.retry import RetryPolicy

__all__ = [
    "AdminClient",
    "BucketLatency",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "EngineModelStatus",
    "EngineStatus",
    "FrontendStatus",
    "InvalidRequest",
    "ModelFailed",
    "ModelInfo",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "PredictionError",
    "Priority",
    "RetryPolicy",
    "ServerStatus",
    "SettingInfo",
    "SettingsChange",
    "SettingsChanged",
    "SettingsInfo",
    "TensorInfo",
    "Timing",
    "TlsFiles",
    "Unauthenticated",
    "Unavailable",
    "VersionInfo",
]
