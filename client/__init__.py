"""The async client of tickring: `Client`, what it returns, and what it raises."""

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
    Unauthenticated,
    Unavailable,
)
from client.model_info import ModelInfo, TensorInfo, VersionInfo
from client.prediction import Prediction, Timing
from client.priority import Priority
from client.retry import RetryPolicy

__all__ = [
    "Cancelled",
    "Client",
    "DeadlineExceeded",
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
    "TensorInfo",
    "Timing",
    "TlsFiles",
    "Unauthenticated",
    "Unavailable",
    "VersionInfo",
]
