"""The admin port over a real socket: every RPC and refusal, who may call, and where it listens."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from client import TlsFiles
from scheduler.clock import VirtualClock
from server.admin_port import AdminPort, admin_host
from server.ports import PortInUse
from server.problems import SettingsError
from server.rpc.admin import SERVICE, AdminService
from server.settings import Settings
from server.status import DETAILS_TRAILER
from tests.certificates import Authority
from tests.server.admin_world import SETTINGS, Scripted, administered
from tickring.v1 import admin_pb2, model_pb2

Code = grpc.StatusCode
DEADLINE_S = 20.0
METHODS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name


class Caller:
    """Calls AdminService by names."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None = None) -> None:
        self._channel = channel
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def start(self, method: str, **fields: Any) -> Any:
        """One call that goes on."""
        request = getattr(admin_pb2, f"{method}Request")
        response = getattr(admin_pb2, f"{method}Response")
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
        )
        return call(request(**fields), timeout=DEADLINE_S, metadata=self._metadata)

    async def __call__(self, method: str, **fields: Any) -> Any:
        return await self.start(method, **fields)

    async def ending(self, method: str) -> tuple[Code, str]:
        """Status and text of a call with an empty message."""
        try:
            await self(method)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return Code.OK, ""

    async def refused(self, method: str, **fields: Any) -> "Refusal":
        """How a call ended that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self(method, **fields)
        return Refusal(failed.value)


class Refusal:
    """A status and its details."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        trailers: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
        self._status = Status.FromString(trailers.get(DETAILS_TRAILER, b""))

    @property
    def info(self) -> tuple[str, dict[str, str]]:
        """Reason and metadata of the ErrorInfo."""
        info = self._detail(error_details_pb2.ErrorInfo())
        assert info.domain == "tickring"
        return info.reason, dict(info.metadata)

    @property
    def violations(self) -> list[tuple[str, str]]:
        """Field and description of each."""
        return [
            (v.field, v.description) for v in self._detail(error_details_pb2.BadRequest()).field_violations
        ]

    def _detail(self, kind: Any) -> Any:
        assert any(detail.Unpack(kind) for detail in self._status.details), self._status
        return kind


@pytest.fixture
async def served() -> AsyncIterator[tuple[Scripted, AdminPort]]:
    """On loopback, without tokens."""
    async with administered() as served:
        yield served


@pytest.fixture
def administration(served: tuple[Scripted, AdminPort]) -> Scripted:
    """What is behind the port."""
    return served[0]


@pytest.fixture
def port(served: tuple[Scripted, AdminPort]) -> AdminPort:
    """The port."""
    return served[1]


@pytest.fixture
async def call(port: AdminPort) -> AsyncIterator[Caller]:
    """Somebody on this machine."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        yield Caller(channel)


# -- models -------------------------------------------------------------------------------------


async def test_load_answers_with_the_model(administration: Scripted, call: Caller) -> None:
    """The newest version where none is named; versions come oldest first, each with its state."""
    answer = (await call("LoadModel", model_name="pair", model_version="1")).model
    assert (answer.name, answer.format, answer.is_default, answer.max_rows) == (
        "pair",
        "torchscript",
        True,
        8,
    )
    available, ready = model_pb2.MODEL_STATE_AVAILABLE, model_pb2.MODEL_STATE_READY
    assert [(v.version, v.state, v.sha256) for v in answer.versions] == [
        ("1", ready, f"{1:064x}"),
        ("2", available, f"{2:064x}"),
        ("3", ready, f"{3:064x}"),
    ]
    assert [(spec.name, list(spec.shape)) for spec in (*answer.inputs, *answer.outputs)] == [
        ("x", [2, 3]),
        ("y", []),
    ]
    await call("LoadModel", model_name="pair")
    assert [asked[:3] for asked in administration.calls] == [("load", "pair", 1), ("load", "pair", None)]


async def test_unload_takes_a_version_or_all(administration: Scripted, call: Caller) -> None:
    """As asked for; the answer is empty."""
    await call("LoadModel", model_name="pair", model_version="2")
    answer = await call("UnloadModel", model_name="pair", model_version="3")
    assert answer == admin_pb2.UnloadModelResponse()
    left = [administration.loaded["pair"]]
    administration.release.set()
    await call("LoadModel", model_name="slow")
    await call("UnloadModel", model_name="pair")
    left.append(administration.loaded["pair"])
    assert left == [(2,), ()]
    assert [asked[:3] for asked in administration.calls if asked[0] == "unload"] == [
        ("unload", "pair", 3),
        ("unload", "pair", None),
    ]


@pytest.mark.parametrize(
    ("method", "fields", "code", "reason"),
    [
        ("LoadModel", {"model_name": "none"}, Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("LoadModel", {"model_name": "pair", "model_version": "9"}, Code.NOT_FOUND, "VERSION_NOT_FOUND"),
        ("LoadModel", {"model_name": "broken"}, Code.FAILED_PRECONDITION, "CANNOT_LOAD"),
        ("UnloadModel", {"model_name": "none"}, Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("UnloadModel", {"model_name": "pair"}, Code.FAILED_PRECONDITION, "CANNOT_UNLOAD"),
    ],
)
async def test_model_that_cannot_be_changed(
    call: Caller, method: str, fields: dict[str, str], code: Code, reason: str
) -> None:
    """What stands against it is the text, and its kind the reason."""
    refusal = await call.refused(method, **fields)
    assert (refusal.code, refusal.info) == (code, (reason, {}))
    assert fields["model_name"] in refusal.message


@pytest.mark.parametrize("method", ["LoadModel", "UnloadModel"])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "model_name"),
        ({"model_version": "1"}, "model_name"),
        ({"model_name": "pair", "model_version": "0"}, "model_version"),
        ({"model_name": "pair", "model_version": "-1"}, "model_version"),
        ({"model_name": "pair", "model_version": "1.0"}, "model_version"),
        ({"model_name": "pair", "model_version": "\u0661"}, "model_version"),
        ({"model_name": "pair", "model_version": "9" * 10}, "model_version"),
    ],
)
async def test_model_that_nobody_could_mean(
    administration: Scripted, call: Caller, method: str, fields: dict[str, str], field: str
) -> None:
    """The field is named, and nobody is asked."""
    refusal = await call.refused(method, **fields)
    assert (refusal.code, refusal.violations[0][0]) == (Code.INVALID_ARGUMENT, field)
    assert administration.calls == []


async def test_change_goes_on_without_its_caller(
    administration: Scripted, port: AdminPort, call: Caller
) -> None:
    """Half of a change is worse than all of it or none."""
    loading = call.start("LoadModel", model_name="slow")
    await administration.began.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    while not port._access.cancels._levels:  # until the server has heard of it
        await call("GetStatus")
    assert administration.finished == []
    administration.release.set()
    await call("LoadModel", model_name="slow")
    assert administration.finished == ["slow", "slow"]


async def test_traffic_is_not_split_yet(call: Caller) -> None:
    """Which says so."""
    refusal = await call.refused("SetTraffic")
    assert (refusal.code, "newest version" in refusal.message) == (Code.UNIMPLEMENTED, True)


# -- settings -----------------------------------------------------------------------------------


async def test_settings_are_told_with_origin_and_effect(call: Caller) -> None:
    """In their order; what is not set is empty."""
    answer = await call("GetSettings")
    assert (answer.version, answer.profile) == (1, "market_hours")
    assert [(s.path, s.value, s.origin) for s in answer.settings] == [
        (s.path, s.value_text, s.origin) for s in SETTINGS
    ]
    effects = {s.path: admin_pb2.SettingEffect.Name(s.effect) for s in answer.settings}
    assert effects["telemetry.log_level"] == "SETTING_EFFECT_LIVE"
    assert effects["scheduler.max_batch_size"] == "SETTING_EFFECT_ENGINES"
    assert effects["server.admin_port"] == "SETTING_EFFECT_RESTART"


async def test_settings_change_and_are_taken_back(administration: Scripted, call: Caller) -> None:
    """An absent value takes back, an empty one is a value; what changes nothing is not among the changed."""
    level, model = "telemetry.log_level", "models.default_model"
    answer = await call("UpdateSettings", updates=updates(**{level: "debug", model: ""}))
    assert (answer.version, list(answer.changed_paths)) == (2, [level])
    answer = await call("UpdateSettings", updates=updates(**{level: None}), expected_version=2)
    assert (answer.version, list(answer.changed_paths)) == (3, [level])
    assert [asked[:4] for asked in administration.calls] == [
        ("update", {level: "debug", model: ""}, None, False),
        ("update", {level: None}, 2, False),
    ]


async def test_check_changes_nothing(call: Caller) -> None:
    """It says what would."""
    before = await call("GetSettings")
    answer = await call(
        "UpdateSettings", updates=updates(**{"telemetry.log_level": "debug"}), validate_only=True
    )
    assert (answer.version, list(answer.changed_paths)) == (1, ["telemetry.log_level"])
    assert await call("GetSettings") == before


async def test_bad_settings_are_told_one_by_one(call: Caller) -> None:
    """A violation for each, by the path of the setting."""
    wrong = {"scheduler.max_batch_size": "many", "scheduler.max_batches": "1", "telemetry.log_level": "debug"}
    refusal = await call.refused("UpdateSettings", updates=updates(**wrong))
    assert (refusal.code, refusal.info) == (Code.INVALID_ARGUMENT, ("INVALID_SETTINGS", {}))
    assert refusal.violations == [
        ("scheduler.max_batches", "1: is no setting"),
        ("scheduler.max_batch_size", "many: must be a whole number"),
    ]
    assert refusal.message == (
        "scheduler.max_batches = 1: is no setting; scheduler.max_batch_size = many: must be a whole number"
    )


async def test_setting_that_needs_a_restart(call: Caller) -> None:
    """Is named, and the others of the call stay as they were."""
    wanted = {"telemetry.log_level": "debug", "server.admin_port": "9000"}
    refusal = await call.refused("UpdateSettings", updates=updates(**wanted))
    assert refusal.code is Code.FAILED_PRECONDITION
    assert refusal.info == ("NEEDS_RESTART", {"paths": "server.admin_port"})
    assert (await call("GetSettings")).version == 1


async def test_settings_that_somebody_else_has_changed(call: Caller) -> None:
    """Both versions are told."""
    refusal = await call.refused(
        "UpdateSettings", updates=updates(**{"telemetry.log_level": "debug"}), expected_version=7
    )
    assert refusal.code is Code.ABORTED
    assert refusal.info == ("SETTINGS_CHANGED", {"expected_version": "7", "actual_version": "1"})


@pytest.mark.parametrize(
    ("paths", "expected_version", "field"),
    [
        ([], 0, "updates"),
        (["a"] * 300, 0, "updates"),
        (["telemetry.log_level", ""], 0, "updates[1].path"),
        (["telemetry.log_level", "profile", "profile"], 0, "updates[2].path"),
        (["telemetry.log_level"], -1, "expected_version"),
    ],
)
async def test_update_that_makes_no_sense(
    administration: Scripted, call: Caller, paths: Sequence[str], expected_version: int, field: str
) -> None:
    """The field is named, and nobody is asked."""
    wanted = [admin_pb2.SettingUpdate(path=path, value="debug") for path in paths]
    refusal = await call.refused("UpdateSettings", updates=wanted, expected_version=expected_version)
    assert (refusal.code, refusal.violations[0][0]) == (Code.INVALID_ARGUMENT, field)
    assert administration.calls == []


def updates(**values: str | None) -> list[admin_pb2.SettingUpdate]:
    """None takes back."""
    return [admin_pb2.SettingUpdate(path=path, value=value) for path, value in values.items()]


# -- status and end -----------------------------------------------------------------------------


async def test_status_has_the_books(call: Caller) -> None:
    """Of every process, with the version of the settings; test_admin_status has the numbers."""
    await call("UpdateSettings", updates=updates(**{"telemetry.log_level": "debug"}))
    answer = await call("GetStatus")
    assert answer.settings_version == 2
    assert [(f.name, f.restarts) for f in answer.frontends] == [("frontend-0", 1)]
    assert [(e.name, e.restarts, e.ready) for e in answer.engines] == [("engine-0", 2, True)]


async def test_uptime_is_counted_from_the_start() -> None:
    """By the clock."""
    clock = VirtualClock(5_000)
    service = AdminService(Scripted(), lambda _: "somebody", clock)
    clock.advance(7_000)
    answer = await service.get_status(admin_pb2.GetStatusRequest(), None)  # type: ignore[arg-type]
    assert answer.uptime_ns == 7_000


async def test_drain_is_answered_before_the_port_goes(
    administration: Scripted, port: AdminPort, call: Caller
) -> None:
    """Whoever ends the service on hearing of it lets the answer out; then nobody listens any more."""

    async def end() -> None:
        await administration.drained.wait()
        await port.stop(DEADLINE_S)

    with capture_logs() as logs:
        ending = asyncio.create_task(end())
        assert await call("Drain") == admin_pb2.DrainResponse()
        await ending
    assert administration.calls == [("drain",)]
    (asked,) = (line for line in logs if line["event"] == "drain asked for")
    assert asked["author"].startswith("ipv4:127.0.0.1:")
    assert (await call.refused("GetStatus")).code is Code.UNAVAILABLE


# -- the port -----------------------------------------------------------------------------------


async def test_every_method_of_the_proto_is_there(call: Caller) -> None:
    """None is answered by gRPC itself, which would have no text of ours."""
    assert len(METHODS) == 7
    for method in METHODS:
        assert "Method not found" not in (await call.ending(method))[1]


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
    return AdminPort(Settings.model_validate({"server": {"admin_port": number}}), Scripted())


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
