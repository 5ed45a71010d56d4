"""AdminService over a real socket: every RPC, and every refusal with its details."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from scheduler.clock import VirtualClock
from server.admin_port import AdminPort
from server.rpc.admin import AdminService
from tests.server.admin_calls import DEADLINE_S, METHODS, Caller, updates
from tests.server.admin_world import LINEUP, SETTINGS, Scripted, administered
from tests.server.overview_world import overview
from tickring.v1 import admin_pb2, model_pb2, types_pb2

Code = grpc.StatusCode


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


# -- status and end -----------------------------------------------------------------------------


async def test_status_has_the_books(call: Caller) -> None:
    """Of every process, with the version of the settings; test_admin_status has the numbers."""
    await call("UpdateSettings", updates=updates(**{"telemetry.log_level": "debug"}))
    answer = await call("GetStatus")
    assert answer.settings_version == 2
    assert [(f.name, f.restarts) for f in answer.frontends] == [("frontend-0", 1)]
    assert [(e.name, e.restarts, e.ready) for e in answer.engines] == [("engine-0", 2, True)]


async def test_status_has_the_last_minute_and_the_promises(call: Caller) -> None:
    """By class and model; a prediction is tried only where that is asked for."""
    answer = await call("GetStatus")
    assert (answer.state, answer.profile) == ("ready", "market_hours")
    second, minute = answer.activity
    assert (second.window_s, minute.window_s) == (1, 60)
    assert [flow.requests_per_s > 0 for flow in minute.classes] == [True, False, True, False, False]
    assert minute.classes[2].priority == types_pb2.PRIORITY_BATCH_PROCESSING
    assert minute.classes[0].HasField("wait_p99_ms")
    assert not minute.classes[1].HasField("wait_p99_ms")
    assert [model.target_size for model in minute.models] == [32]
    assert answer.readings["cpu_utilization_ratio"] == 0.62
    assert answer.slo.state == "met"
    assert [window.window_s for window in answer.slo.windows] == [60, 300, 3600]
    assert not answer.HasField("health")
    assert (await call("GetStatus", deep=True)).health.state == "healthy"


async def test_uptime_is_counted_from_the_start() -> None:
    """By the clock."""
    clock = VirtualClock(5_000)
    administration = Scripted()
    reports, _ = overview(administration, LINEUP)
    service = AdminService(administration, reports, lambda _: "somebody", clock)
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


async def test_every_method_of_the_proto_is_there(call: Caller) -> None:
    """None is answered by gRPC itself, which would have no text of ours."""
    assert len(METHODS) == 7
    for method in METHODS:
        assert "Method not found" not in (await call.ending(method))[1]
