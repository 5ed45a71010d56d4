"""Settings that change in a running service: at once, by new engines, or not at all."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e.calls import RpcStream, request, streamed, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.live import (
    SETTINGS,
    Admin,
    Model,
    admin_of,
    alone,
    answered,
    books,
    engines,
    traffic,
    until,
)
from tests.e2e.service import Service, pause
from tests.server.admin_calls import updates
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
BULK = types_pb2.PRIORITY_BACKGROUND_TASKS
QUEUE_LIMIT = "scheduler.classes.background_tasks.queue_limit"
MAX_WAIT = "scheduler.classes.background_tasks.max_wait_ms"
LARGEST = "scheduler.max_batch_size"
ROWS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = Model(tmp_path_factory.mktemp("settings"), "scale")
    model.add()
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of settings."""
    path = tmp_path_factory.mktemp("file") / "tickring.toml"
    path.write_text("[slo]\nmin_rps = 5\n")
    return path


def start(launch: Launch, model: Model, *arguments: str, **settings: str) -> Service:
    own = {name: value for name, value in SETTINGS.items() if not name.endswith("MAX_BATCH_SIZE")}
    return launch("--models", str(model.repository), *arguments, settings=own | settings).ready()


@pytest.fixture(scope="module")
def service(launch: Launch, model: Model, file: Path) -> Iterator[Service]:
    # Bulk waits for company for longer than any test.
    waits = {"TICKRING_SCHEDULER__CLASSES__BACKGROUND_TASKS__MAX_WAIT_MS": "60000"}
    service = start(launch, model, "--config", str(file), "--frontends", "1", **waits)
    yield service
    service.stop()


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[Admin]:
    async with admin_of(service) as admin:
        yield admin


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield channel


async def update(admin: Admin, **fields: Any) -> Any:
    """Values by paths; what is not a path is a field of the request."""
    paths = {path: value for path, value in fields.items() if "." in path}
    return await admin(
        "UpdateSettings", updates=updates(**paths), **{n: v for n, v in fields.items() if n not in paths}
    )


async def shown(admin: Admin) -> dict[str, tuple[str, str]]:
    """Value and origin by path."""
    settings = (await admin("GetSettings")).settings
    return {setting.path: (setting.value, setting.origin) for setting in settings}


def rows(model: Model, count: int) -> inference_pb2.PredictRequest:
    """One request of so many."""
    values = tensor("x", [[1.0] * 4] * count)
    return request(model.name, values, priority=types_pb2.PRIORITY_REAL_TIME_TRADING)


async def test_every_value_has_an_origin(admin: Admin) -> None:
    """From the defaults to the command line."""
    found = await shown(admin)
    assert found["slo.min_rps"] == ("5.0", "file")
    assert found["server.frontends"] == ("1", "command line")
    assert found["scheduler.adaptive"] == ("false", "environment")
    assert found[LARGEST] == ("64", "profile market_hours")
    assert found["models.poll_s"] == ("0.0", "default")


async def test_limits_hold_from_the_next_request_on(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """What has been let in stays in, and goes as soon as it need not wait for company any more."""
    before = engines(service)
    stream = RpcStream(channel)
    await stream.send(*[streamed(number, model.ask(priority=BULK)) for number in (1, 2)])
    changed = await update(admin, **{QUEUE_LIMIT: "2"})
    assert list(changed.changed_paths) == [QUEUE_LIMIT]
    await stream.send(streamed(3, model.ask(priority=BULK)))
    sequence, refused = await stream.answer()
    assert (sequence, refused.code) == (3, Code.RESOURCE_EXHAUSTED)
    assert refused.message.endswith("background_tasks: 2 of 2 are taken")
    taken_back = await update(admin, **{QUEUE_LIMIT: None, MAX_WAIT: "0"})
    assert taken_back.version == changed.version + 1
    await stream.send(streamed(4, model.ask(priority=BULK)))
    await stream.half_close()
    answers, end = await stream.rest()
    assert (end.code, sorted(number for number, _ in answers)) == (Code.OK, [1, 2, 4])
    assert {answered(ending) for _, ending in answers} == {1}
    assert engines(service) == before


async def test_batches_get_smaller_by_new_engines(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """While calls go on; none fails."""
    ending = await unary(channel, rows(model, ROWS))
    assert (ending.response.timing.batch_size, ending.response.timing.batch_bucket) == (ROWS, 64)
    before = engines(service)
    async with traffic(service, model) as callers:
        assert list((await update(admin, **{LARGEST: "16"})).changed_paths) == [LARGEST]
        await callers.goes_on()
    assert callers.versions() == {1}
    ending = await unary(channel, rows(model, ROWS))
    assert 1 <= ending.response.timing.batch_size <= 16
    await alone(service)
    assert engines(service).isdisjoint(before)
    assert (await shown(admin))[LARGEST] == ("16", "run time")


async def test_what_takes_a_restart_is_refused(service: Service, admin: Admin) -> None:
    """With what would be changed beside it; nothing is."""
    before = await admin("GetSettings")
    refused = await admin.refused(
        "UpdateSettings",
        updates=updates(**{"server.grpc_port": "1", "slo.p50_ms": "3", "cache.entries": "7"}),
    )
    assert (refused.code, refused.info) == (
        Code.FAILED_PRECONDITION,
        ("NEEDS_RESTART", {"paths": "server.grpc_port, cache.entries"}),
    )
    assert await admin("GetSettings") == before


async def test_what_is_wrong_is_refused_with_every_problem(admin: Admin) -> None:
    """By path."""
    refused = await admin.refused(
        "UpdateSettings",
        updates=updates(**{"slo.p50_ms": "x", QUEUE_LIMIT: "0", "models.default_model": "a"}),
    )
    assert refused.code is Code.INVALID_ARGUMENT
    assert {field for field, _ in refused.violations} == {"slo.p50_ms", QUEUE_LIMIT}
    refused = await admin.refused("UpdateSettings", updates=updates(**{"models.default_model": "a"}))
    assert refused.violations == [("models.default_model", "a: must be one of scale")]


async def test_two_that_change_settings_at_once(admin: Admin) -> None:
    """The second is told that what it read has changed."""
    version = (await admin("GetSettings")).version
    assert (await update(admin, **{"slo.p50_ms": "3"}, expected_version=version)).version == version + 1
    refused = await admin.refused(
        "UpdateSettings", updates=updates(**{"slo.p50_ms": "4"}), expected_version=version
    )
    assert (refused.code, refused.info[0]) == (Code.ABORTED, "SETTINGS_CHANGED")
    checked = await update(admin, **{"slo.p50_ms": "4"}, expected_version=version + 1, validate_only=True)
    assert (checked.version, list(checked.changed_paths)) == (version + 1, ["slo.p50_ms"])
    assert (await shown(admin))["slo.p50_ms"] == ("3.0", "run time")


async def test_a_changed_file_is_taken_up_by_a_signal(service: Service, admin: Admin, file: Path) -> None:
    """Below what was set at run time; a bad one changes nothing."""
    await update(admin, **{"slo.p95_ms": "9"})
    seen = len(service.logged())
    await asyncio.to_thread(file.write_text, "[slo]\nmin_rps = 6\np95_ms = 8\n")
    service.signal(signal.SIGHUP)
    line = await asyncio.to_thread(service.wait_for, "settings changed", after=seen)
    assert (line["author"], line["changes"]) == ("SIGHUP", {"slo.min_rps": ["5.0", "6.0"]})
    found = await shown(admin)
    assert (found["slo.min_rps"], found["slo.p95_ms"]) == (("6.0", "file"), ("9.0", "run time"))
    for text, said in (
        ("[slo]\nmin_rps = -1\n", "slo.min_rps = -1: must be"),
        ("[cache]\nentries = 7\n[slo]\nmin_rps = 7\n", "cache.entries: a change takes a restart"),
    ):
        seen = len(service.logged())
        await asyncio.to_thread(file.write_text, text)
        service.signal(signal.SIGHUP)
        line = await asyncio.to_thread(
            service.wait_for, "settings not reloaded, nothing was changed", after=seen
        )
        assert [problem.startswith(said) for problem in line["problems"]] == [True]
    assert await shown(admin) == found


async def test_how_loud_the_log_is_changes_in_every_process(service: Service, admin: Admin) -> None:
    """The supervisor's own included, which tells of changes."""
    seen = len(service.logged())
    await update(admin, **{"telemetry.log_level": "error"})
    await update(admin, **{"slo.p99_ms": "1"})
    await update(admin, **{"telemetry.log_level": "debug"})
    line = await asyncio.to_thread(
        service.wait_for, "settings changed", after=seen, changes={"telemetry.log_level": ["error", "debug"]}
    )
    told = [line for line in service.logged()[seen:] if line["event"] == "settings changed"]
    assert told == [line]


async def test_a_front_end_that_takes_up_no_change_is_replaced(launch: Launch, model: Model) -> None:
    """It stands still with nothing to do, and would hold up this change and every other one."""
    service = start(launch, model, TICKRING_EXECUTOR__STALL_TIMEOUT_S="2")
    async with admin_of(service) as admin:
        pid = service.pid("frontend-1")
        seen = len(service.logged())
        pause(pid)
        await update(admin, **{"slo.p50_ms": "3"})
        await asyncio.to_thread(service.wait_for, "spawned", after=seen, child="frontend-1")
        async with traffic(service, model) as callers:
            await callers.goes_on()
        assert callers.versions() == {1}
        await drained(service, model, admin)


async def drained(service: Service, model: Model, admin: Admin) -> None:
    """By the admin port, as SIGTERM does it: what is in flight is answered, and the server exits with 0."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        with service.paused(await alone(service)):
            calls = [asyncio.create_task(unary(channel, model.ask())) for _ in range(8)]
            await until(lambda: books(service)["engines"][0]["waiting"] == 8)
            for _ in range(2):
                await admin("Drain")
            refused = await admin.refused("UpdateSettings", updates=updates(**{"slo.p50_ms": "4"}))
            assert (refused.code, refused.info[0]) == (Code.UNAVAILABLE, "DRAINING")
        assert {answered(await call) for call in calls} == {1}
    assert await asyncio.to_thread(service.wait) == 0
    assert service.check_ends() > 8
