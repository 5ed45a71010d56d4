"""How this client connects: channel options, TLS files, and the RPCs it calls."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.codec import MAX_MESSAGE_BYTES
from tickring.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Unary: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[Request, Response]

DEFAULT_TARGET = "127.0.0.1:8001"
DEFAULT_ADMIN_TARGET = "127.0.0.1:8003"

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Ours are the only retries, so that `attempts` means what it says.
    ("grpc.enable_retries", 0),
    # A connection of one's own: channels with equal options would otherwise share one, and a server's
    # front ends share their load by connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that comes back is found within a fraction of a second, not after gRPC's 1 s to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # As often as every gRPC server permits unasked (more is answered with "too_many_pings").
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS: `ca` verifies the server (None: gRPC's bundled roots); `cert` and `key`, always
    together, prove who this client is.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("TLS needs both cert and key, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises `OSError` where one cannot be read."""
        ca, key, cert = (
            None if path is None else path.read_bytes() for path in (self.ca, self.key, self.cert)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)


@dataclass(frozen=True, slots=True)
class ServerRpcs:
    """The RPCs of the main port. The generated stubs are untyped; their types are written here."""

    predict: Unary[inference_pb2.PredictRequest, inference_pb2.PredictResponse]
    # Quoted: a type only for the checker, Python cannot subscript it in every grpcio.
    predict_stream: (
        "grpc.aio.StreamStreamMultiCallable"
        "[inference_pb2.PredictStreamRequest, inference_pb2.PredictStreamResponse]"
    )
    list_models: Unary[model_pb2.ListModelsRequest, model_pb2.ListModelsResponse]
    get_model: Unary[model_pb2.GetModelRequest, model_pb2.GetModelResponse]
    check: Unary[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


def server_rpcs(channel: grpc.aio.Channel) -> ServerRpcs:
    """Those of this channel."""
    inference = inference_pb2_grpc.InferenceServiceStub(channel)
    models = model_pb2_grpc.ModelServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    return ServerRpcs(
        inference.Predict, inference.PredictStream, models.ListModels, models.GetModel, health.Check
    )


@dataclass(frozen=True, slots=True)
class AdminRpcs:
    """The RPCs of the admin port that this client calls."""

    load_model: Unary[admin_pb2.LoadModelRequest, admin_pb2.LoadModelResponse]
    unload_model: Unary[admin_pb2.UnloadModelRequest, admin_pb2.UnloadModelResponse]
    get_settings: Unary[admin_pb2.GetSettingsRequest, admin_pb2.GetSettingsResponse]
    update_settings: Unary[admin_pb2.UpdateSettingsRequest, admin_pb2.UpdateSettingsResponse]
    get_status: Unary[admin_pb2.GetStatusRequest, admin_pb2.GetStatusResponse]
    drain: Unary[admin_pb2.DrainRequest, admin_pb2.DrainResponse]


def admin_rpcs(channel: grpc.aio.Channel) -> AdminRpcs:
    """Those of this channel."""
    stub = admin_pb2_grpc.AdminServiceStub(channel)
    return AdminRpcs(
        stub.LoadModel,
        stub.UnloadModel,
        stub.GetSettings,
        stub.UpdateSettings,
        stub.GetStatus,
        stub.Drain,
    )


def open_channel(target: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """On the running event loop; it connects when first used. Raises `OSError` for TLS files."""
    if tls is None:
        # What is meant to stay on this machine does not go through a proxy of the environment either.
        direct = (("grpc.enable_http_proxy", 0),) if stays_here(target) else ()
        return grpc.aio.insecure_channel(target, options=(*_OPTIONS, *direct))
    return grpc.aio.secure_channel(target, tls.credentials(), options=_OPTIONS)


def call_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What every RPC carries. A token goes in clear text where TLS is off: see `stays_here`."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def stays_here(target: str) -> bool:
    """Whether what is sent to this gRPC target never leaves this machine. What is not understood does."""
    if re.match(r"unix(-abstract)?:", target):
        return True
    # "//" would be another machine, which says what the name means.
    addresses = re.sub(r"^(dns:///|dns:|ipv4:|ipv6:)", "", target).split(",")
    return all(host == "localhost" or _is_loopback(host) for host in map(_host, addresses))


def _host(address: str) -> str:
    """Of "host:port", "host", "[::1]:port" or "::1"."""
    bracketed = re.match(r"\[(.*)\]", address)
    if bracketed:
        return bracketed[1]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
