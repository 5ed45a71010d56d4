"""The admin port: health and reflection beside the service, where it listens, and who may call."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from client import TlsFiles
from server.admin_port import AdminPort, admin_host
from server.ports import PortInUse
from server.problems import SettingsError
from server.rpc.admin import SERVICE
from server.settings import Settings
from tests.certificates import Authority
from tests.server.admin_calls import DEADLINE_S, METHODS, Caller, updates
from tests.server.admin_world import LINEUP, Scripted, administered
from tests.server.overview_world import overview

Code = grpc.StatusCode


@pytest.fixture
async def port() -> AsyncIterator[AdminPort]:
    """On loopback, without tokens."""
    async with administered() as (_, port):
        yield port


async def test_health_and_reflection_are_there(port: AdminPort) -> None:
    """Of this port's service only."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        for name in ("", SERVICE):
            assert (await check(channel, name)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(channel, "tickring.v1.InferenceService")
        assert unknown.value.code() is Code.NOT_FOUND
        listed = (await reflect(channel)).list_services_response.service
    assert [service.name for service in listed] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]


async def test_watched_health_ends_with_the_port(port: AdminPort) -> None:
    """A watcher is told, and does not make the end take the whole grace period."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        watch: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(port.stop(3600))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def check(channel: grpc.aio.Channel, service: str) -> Any:
    """Its health."""
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return await call(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)


async def reflect(channel: grpc.aio.Channel, metadata: Any = ()) -> Any:
    """What reflection lists."""
    call: Any = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    return await call(iter([request]), timeout=DEADLINE_S, metadata=metadata).read()


async def test_port_that_is_taken() -> None:
    """By another admin port or by anybody, it is said in a line."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{number}"):
            await port_on(number).start()
    async with administered() as (_, first):
        with pytest.raises(PortInUse, match=f"127.0.0.1:{first.port}"):
            await port_on(first.port).start()


def port_on(number: int) -> AdminPort:
    """Not started."""
    administration = Scripted()
    seen, _ = overview(administration, LINEUP)
    return AdminPort(Settings.model_validate({"server": {"admin_port": number}}), administration, seen)


async def test_port_that_never_started_stops_at_once() -> None:
    """Whoever cleans up need not know how far it came."""
    await port_on(0).stop(3600)


@pytest.mark.parametrize(
    ("host", "tokens", "expected"),
    [
        ("127.0.0.1", False, "127.0.0.1"),
        ("localhost", False, "localhost"),
        ("127.0.0.5", False, "127.0.0.5"),
        ("::1", False, "::1"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("10.0.0.5", False, "127.0.0.1"),
        ("tickring.example", False, "127.0.0.1"),
        ("::", False, "127.0.0.1"),
        ("fe80::1", False, "::1"),
        ("0.0.0.0", True, "0.0.0.0"),
        ("10.0.0.5", True, "10.0.0.5"),
        ("fe80::1", True, "fe80::1"),
    ],
)
def test_address_it_listens_on(host: str, tokens: bool, expected: str) -> None:
    """Without tokens nothing from another machine reaches it, whatever the main port does."""
    tables = {"server": {"host": host}} | ({"auth": {"tokens_file": "tokens.toml"}} if tokens else {})
    assert admin_host(Settings.model_validate(tables)) == expected


@pytest.mark.parametrize(("host", "lines"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
async def test_loopback_only_is_logged(host: str, lines: int) -> None:
    """Where somebody could expect otherwise."""
    with capture_logs() as logs:
        async with administered({"server": {"host": host}}) as (_, port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
                await Caller(channel)("GetStatus")
            assert not reachable(own_address(), port.port)
    said = [line for line in logs if "loopback only" in line["event"]]
    assert len(said) == lines
    assert all(line["server_host"] == host for line in said)


def own_address() -> str:
    """Another loopback address than the one it listens on: what binds everything takes it as well."""
    return "127.0.0.2"


def reachable(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


# -- who may ------------------------------------------------------------------------------------


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """Three tokens, named after their roles."""
    path = tmp_path / "tokens.toml"
    write_tokens(path, "predict", "observe", "admin")
    return path


def write_tokens(path: Path, *roles: str) -> None:
    """In one step."""
    new = path.with_suffix(".new")
    new.write_text(
        "".join(
            f'[tokens.{role}-token]\nroles = ["{role}"]\n'
            f'sha256 = "{hashlib.sha256(f"secret {role}".encode()).hexdigest()}"\n'
            for role in roles
        )
    )
    new.replace(path)


async def test_who_may_call_what(tokens_file: Path) -> None:
    """Everything takes admin but what only looks; a stranger gets as far as health."""
    refusing = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
    may: dict[str | None, set[str]] = {}
    async with (
        administered({"server": {"host": "0.0.0.0"}, "auth": {"tokens_file": str(tokens_file)}}) as (_, port),
        grpc.aio.insecure_channel(f"{own_address()}:{port.port}") as channel,
    ):
        for role in (None, "predict", "observe", "admin"):
            call = Caller(channel, None if role is None else f"secret {role}")
            may[role] = set()
            for method in METHODS:
                code, _ = await call.ending(method)
                if code not in refusing:
                    may[role].add(method)
                else:
                    assert code is refusing[role is not None]
        assert (await check(channel, "")).status == health_pb2.HealthCheckResponse.SERVING
        shown = (("authorization", "Bearer secret predict"),)
        assert (await reflect(channel, shown)).list_services_response.service
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await reflect(channel)
        assert nobody.value.code() is Code.UNAUTHENTICATED
    looking = {"GetSettings", "GetStatus"}
    assert may == {None: set(), "predict": set(), "observe": looking, "admin": set(METHODS)}


async def test_author_is_the_token_or_the_peer(tokens_file: Path) -> None:
    """For the log of who has changed what."""
    for tables, author in (
        ({"auth": {"tokens_file": str(tokens_file)}}, "admin-token"),
        ({}, "ipv4:127.0.0.1:"),
    ):
        async with (
            administered(tables) as (administration, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel,
        ):
            call = Caller(channel, "secret admin")
            await call("LoadModel", model_name="pair")
            await call("LoadModel", model_name="pair", model_version="1")
            await call("UnloadModel", model_name="pair", model_version="1")
            await call("UpdateSettings", updates=updates(**{"telemetry.log_level": "debug"}))
        assert len(administration.calls) == 4
        assert all(asked[-1].startswith(author) for asked in administration.calls)


async def test_token_that_is_taken_back(tokens_file: Path) -> None:
    """The file is looked at while the port serves."""
    async with (
        administered({"auth": {"tokens_file": str(tokens_file)}}) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel,
        asyncio.timeout(DEADLINE_S),
    ):
        call = Caller(channel, "secret admin")
        await call("GetStatus")
        write_tokens(tokens_file, "observe")
        while (code := (await call.ending("GetStatus"))[0]) is Code.OK:
            pass
        assert code is Code.UNAUTHENTICATED


async def test_certificate_of_the_main_port_is_asked_for(tmp_path: Path) -> None:
    """With a client's as well where the main port wants one."""
    authority = Authority(tmp_path / "authority")
    server, admin = authority.sign("server"), authority.sign("admin")
    tls = {"cert": str(server.cert), "key": str(server.key), "client_ca": str(authority.cert)}
    async with administered({"tls": tls}) as (_, port):
        target = f"127.0.0.1:{port.port}"
        files = TlsFiles(authority.cert, admin.cert, admin.key)
        async with grpc.aio.secure_channel(target, files.credentials()) as channel:
            await Caller(channel)("GetStatus")
        async with grpc.aio.secure_channel(target, TlsFiles(authority.cert).credentials()) as channel:
            assert (await Caller(channel).refused("GetStatus")).code is Code.UNAVAILABLE
        async with grpc.aio.insecure_channel(target) as channel:
            assert (await Caller(channel).refused("GetStatus")).code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "tables",
    [
        {"auth": {"tokens_file": "nowhere.toml"}},
        {"tls": {"cert": "nowhere.pem", "key": "nowhere.key"}},
    ],
)
async def test_file_that_cannot_be_used(tables: dict[str, Any]) -> None:
    """The port does not open without what was asked for."""
    with pytest.raises(SettingsError, match="nowhere"):
        async with administered(tables):
            pytest.fail("it serves")
