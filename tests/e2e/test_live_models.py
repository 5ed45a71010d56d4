"""Models that come and go in a running service, while it is asked all the time: nobody else notices."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import OWN_CONNECTION, RpcStream, streamed, unary
from tests.e2e.conftest import Launch
from tests.e2e.live import (
    CHANGE_TIMEOUT_S,
    SETTINGS,
    SLOTS,
    Admin,
    Deadly,
    Endless,
    Model,
    Slow,
    admin_of,
    alive,
    alone,
    answered,
    books,
    engines,
    factor_of,
    kill,
    settled,
    spawned_last,
    states,
    traffic,
    until,
)
from tests.e2e.service import Service
from tests.server.admin_calls import updates
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import types_pb2

Code = grpc.StatusCode
PLACES = 3
HELD = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Every test leaves its newest version loaded, and no other."""
    model = Model(tmp_path_factory.mktemp("live"), "scale")
    model.add()
    return model


@pytest.fixture(scope="module")
def service(launch: Launch, model: Model) -> Iterator[Service]:
    settings = SETTINGS | {
        "TICKRING_MODELS__MAX_LOADED": str(PLACES),
        "TICKRING_EXECUTOR__PREPARE_TIMEOUT_S": str(CHANGE_TIMEOUT_S - 10),
        # So that bulk is held soon, see `scheduler.entrance`.
        "TICKRING_SCHEDULER__BULK_QUANTUM_MS": "0.05",
    }
    service = launch("--models", str(model.repository), settings=settings).ready()
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


# -- new versions -------------------------------------------------------------------------------


async def test_a_new_version_takes_over_and_no_call_fails(
    service: Service, model: Model, admin: Admin
) -> None:
    """Before it the old one answers, after it the new, and in between one of the two."""
    old_engine = service.pid(await alone(service))
    async with traffic(service, model) as callers:
        old, new = model.newest, model.add()
        before = callers.sent
        load = asyncio.create_task(admin.load(model))
        await callers.goes_on()
        assert (load.done(), callers.versions(before)) == (False, {old})
        await load
        after = callers.sent
        await callers.goes_on(100)
        await alone(service)
        await callers.goes_on()
    assert callers.versions() == {old, new}
    assert callers.versions(after) == {new}
    assert not alive(old_engine)
    await settled(service)
    loaded = service.wait_for("model loaded", model=model.name, serving=[f"scale/{new}"])
    assert loaded["author"].startswith("ipv4:127.0.0.1:")


async def test_versions_are_asked_for_by_number_and_by_alias(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """Several are served at once; another alias needs no new engine."""
    old, new = model.newest, model.add()
    model.describe({"stable": old, "canary": new})
    await admin.load(model)
    assert {
        version: state for version, state in (await states(channel, model)).items() if state == "READY"
    } == {
        str(old): "READY",
        str(new): "READY",
    }

    async def by_name() -> dict[str, int]:
        names = ("", "stable", "canary", "latest", str(old), str(new))
        return {name: answered(await unary(channel, model.ask(version=name))) for name in names}

    numbers = {str(old): old, str(new): new, "latest": new}
    assert await by_name() == numbers | {"": old, "stable": old, "canary": new}
    engine = service.pid(await alone(service))
    model.describe({"stable": new, "canary": old})
    await admin.load(model)
    assert await by_name() == numbers | {"": new, "stable": new, "canary": old}
    assert engines(service) == {engine}

    for version, code, said in [
        ("1", Code.FAILED_PRECONDITION, f"version 1 of scale is not loaded, loaded is {old}, {new}"),
        (str(new + 1), Code.NOT_FOUND, f"no version '{new + 1}' of scale; versions are "),
    ]:
        ending = await unary(channel, model.ask(version=version))
        assert (ending.code, ending.message.startswith(said)) == (code, True), ending.message
    refused = await admin.refused("UnloadModel", model_name=model.name, model_version=str(old))
    assert (refused.code, refused.info[0]) == (Code.FAILED_PRECONDITION, "CANNOT_UNLOAD")
    assert refused.message == f"version {old} of scale is its canary version, by its manifest"
    model.describe()


async def test_what_was_let_in_is_answered_before_a_model_goes(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """Also what is still held at the entrance. The others are answered by new engines meanwhile."""
    slow = Model(model.repository, "slow")
    slow.add(zoo.archive(Slow()))
    await admin.load(slow)
    slow.destroy()
    engine = await alone(service)
    pid = service.pid(engine)
    stream = RpcStream(channel, timeout_s=CHANGE_TIMEOUT_S)
    with service.paused(engine):
        bulk = [slow.ask(value, priority=types_pb2.PRIORITY_BACKGROUND_TASKS) for value in range(1, HELD + 1)]
        await stream.send(*[streamed(number, message) for number, message in enumerate(bulk, 1)])
        await until(lambda: sum(f["slots_free"] for f in books(service)["frontends"]) == 2 * SLOTS - HELD)
        assert 0 < books(service)["engines"][0]["waiting"] < HELD, "all are queued, or none: nothing is held"
        seen = len(service.logged())
        unload = asyncio.create_task(admin.unload(slow))
        await asyncio.to_thread(service.wait_for, "model unloaded", after=seen)
        # By the new engine: the old one stands still.
        assert answered(await unary(channel, model.ask())) == model.newest
        refused = await unary(channel, slow.ask())
        assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, "MODEL_NOT_READY")
        assert (unload.done(), alive(pid)) == (False, True)
    await stream.half_close()
    answers, end = await stream.rest()
    assert end.code is Code.OK
    assert {number: factor_of(ending, number) for number, ending in answers} == dict.fromkeys(
        range(1, HELD + 1), 2.0
    )
    await unload
    assert not alive(pid)
    await settled(service)


# -- what cannot be loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"file": b"no model"}, "engines cannot serve so: torch cannot load the file of scale: "),
        ({"sha256": "0" * 64}, "model.pt: sha256 is "),
        ({"file": zoo.archive(Deadly())}, "engines cannot serve so: its process died with code -11"),
    ],
    ids=["file", "checksum", "crash"],
)
async def test_a_version_that_cannot_be_served(
    service: Service, model: Model, admin: Admin, bad: dict[str, Any], said: str
) -> None:
    """Whoever loads it is told why, whoever asks is answered as before; nothing is left of it."""
    good = model.newest
    engine = service.pid(await alone(service))
    seen = len(service.logged())
    async with traffic(service, model) as callers:
        number = model.add(**bad)
        refused = await admin.cannot_load(model)
        model.remove(number)
        await callers.goes_on()
    assert (refused.code, refused.info[0]) == (Code.FAILED_PRECONDITION, "CANNOT_LOAD")
    assert said in refused.message
    assert callers.versions() == {good}
    service.wait_for("engine could not be prepared", after=seen)
    await settled(service)
    assert engines(service) == {engine}


async def test_a_version_that_is_never_ready(service: Service, model: Model, admin: Admin) -> None:
    """Its engine is ended when its time is over. One that somebody kills ends as well."""
    good = model.newest
    number = model.add(zoo.archive(Endless()))
    async with traffic(service, model) as callers:
        seen = len(service.logged())
        load = asyncio.create_task(admin.cannot_load(model))
        await asyncio.to_thread(service.wait_for, "spawned", after=seen)
        kill(service.pid(spawned_last(service)))
        assert (await load).message == "engines cannot serve so: its process died with code -9"
        await admin("UpdateSettings", updates=updates(**{"executor.prepare_timeout_s": "1"}))
        try:
            refused = await admin.cannot_load(model)
        finally:
            await admin("UpdateSettings", updates=updates(**{"executor.prepare_timeout_s": None}))
            model.remove(number)
        await callers.goes_on()
    assert refused.message == "engines cannot serve so: not ready within executor.prepare_timeout_s, 1 s"
    assert callers.versions() == {good}
    await settled(service)


async def test_what_there_is_no_room_for(service: Service, model: Model, admin: Admin) -> None:
    """Neither rows that are too large nor too many versions are tried at all."""
    engine = engines(service)
    other = Model(model.repository, "other")
    try:
        for _ in range(PLACES):
            other.add()
        other.describe(size=1000)
        refused = await admin.cannot_load(other)
        assert (refused.code, refused.info[0]) == (Code.FAILED_PRECONDITION, "CANNOT_LOAD")
        assert refused.message.startswith("the inputs of one item of other take ")
        assert "models.max_row_bytes" in refused.message
        other.describe({"stable": 1, "canary": 2})
        refused = await admin.cannot_load(other)
        assert (refused.code, refused.info[0]) == (Code.FAILED_PRECONDITION, "CANNOT_LOAD")
        assert "has no room, all 3 places are taken; models.max_loaded" in refused.message
    finally:
        other.destroy()
    assert (await admin.cannot_load(other)).code is Code.NOT_FOUND
    assert engines(service) == engine


# -- by KServe's protocol -----------------------------------------------------------------------


async def kserve_call(channel: grpc.aio.Channel, method: str, **fields: Any) -> Any:
    """One call, by names."""
    asked, response = getattr(kserve, f"{method}Request"), getattr(kserve, f"{method}Response")
    path = f"/inference.GRPCInferenceService/{method}"
    call = channel.unary_unary(path, asked.SerializeToString, response.FromString)
    return await call(asked(**fields), timeout=CHANGE_TIMEOUT_S)


async def index(channel: grpc.aio.Channel, model: Model) -> dict[str, str]:
    """State by version."""
    found = await kserve_call(channel, "RepositoryIndex")
    return {entry.version: entry.state for entry in found.models if entry.name == model.name}


async def test_whoever_speaks_kserve_loads_and_unloads(
    service: Service, model: Model, channel: grpc.aio.Channel
) -> None:
    """A service may serve nothing for a while; then it says so, and is not down."""
    newest = str(model.newest)
    assert (await index(channel, model))[newest] == "READY"
    await kserve_call(channel, "RepositoryModelUnload", model_name=model.name)
    assert set((await index(channel, model)).values()) == {"UNAVAILABLE"}
    assert not (await kserve_call(channel, "ModelReady", name=model.name)).ready
    refused = await unary(channel, model.ask())
    assert (refused.code, refused.message) == (Code.FAILED_PRECONDITION, "scale is not loaded")
    assert (await kserve_call(channel, "ServerReady")).ready
    await alone(service)
    await kserve_call(channel, "RepositoryModelLoad", model_name=model.name)
    assert (await kserve_call(channel, "ModelReady", name=model.name)).ready
    assert (await index(channel, model))[newest] == "READY"
    assert answered(await unary(channel, model.ask())) == model.newest
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await kserve_call(channel, "RepositoryModelLoad", model_name="nothing")
    assert (unknown.value.code(), unknown.value.details()) == (
        Code.NOT_FOUND,
        "no model 'nothing' in the repository",
    )
    await settled(service)


async def test_a_front_end_dies_that_has_asked_for_a_load(service: Service, model: Model) -> None:
    """The load is done all the same; its successor gets no answer that it did not ask for."""
    before = restarts(service)
    new = model.add()
    seen = len(service.logged())
    async with grpc.aio.insecure_channel(service.target, options=OWN_CONNECTION) as channel:
        # The kernel has chosen a front end for this connection: both are ended, one after the other.
        load = asyncio.create_task(kserve_call(channel, "RepositoryModelLoad", model_name=model.name))
        await asyncio.to_thread(service.wait_for, "model is loaded", after=seen, version=new)
        for child in ("frontend-0", "frontend-1"):
            kill(service.pid(child))
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await load
    assert lost.value.code() is Code.UNAVAILABLE
    await asyncio.to_thread(service.wait_for, "model loaded", after=seen, serving=[f"scale/{new}"])
    async with traffic(service, model) as callers:
        await callers.goes_on()
    assert callers.versions() == {new}
    assert restarts(service) == before + 2
    assert not [line for line in service.logged()[seen:] if "KeyError" in line["event"]]
    await settled(service)


def restarts(service: Service) -> int:
    """Of front ends."""
    return sum(count for name, count in books(service)["restarts"].items() if name.startswith("frontend"))


# -- deaths -------------------------------------------------------------------------------------


async def test_the_old_engine_dies_with_what_it_had(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """Its calls end with a status; the new one serves on, and the load is done."""
    engine = await alone(service)
    old, new = model.newest, model.add()
    with service.paused(engine):
        calls = [
            asyncio.create_task(unary(channel, model.ask(), timeout_s=CHANGE_TIMEOUT_S)) for _ in range(20)
        ]
        await until(lambda: books(service)["engines"][0]["waiting"] == 20)
        await admin.load(model)
        assert answered(await unary(channel, model.ask())) == new
        assert not any(call.done() for call in calls)
        kill(service.pid(engine))
        endings = await asyncio.gather(*calls)
    assert {(ending.code, ending.reason) for ending in endings} == {(Code.UNAVAILABLE, "ENGINE_LOST")}
    assert answered(await unary(channel, model.ask())) == new
    refused = await unary(channel, model.ask(version=str(old)))
    assert refused.code is Code.FAILED_PRECONDITION
    await settled(service)


async def test_the_new_engine_dies_right_after_it_has_taken_over(
    service: Service, model: Model, admin: Admin
) -> None:
    """Every call ends with a status, and soon the new version is there again, and not the old one."""
    async with traffic(service, model) as callers:
        old, new = model.newest, model.add()
        await admin.load(model)
        after, seen = callers.sent, len(service.logged())
        name = spawned_last(service)
        kill(service.pid(name))
        await asyncio.to_thread(service.wait_for, "engine serves again", after=seen, child=name)
        await callers.goes_on()
    ends = callers.ends(after)
    assert ends.keys() <= {"OK", "ENGINE_LOST", "ENGINE_RESTARTING"}, ends
    assert {answer.version for answer in callers.answers if answer.sent > after and not answer.reason} == {
        new
    }
    assert old not in {answer.version for answer in callers.answers if answer.sent > after}
    await settled(service)


async def test_a_front_end_dies_while_engines_are_prepared(
    service: Service, model: Model, admin: Admin
) -> None:
    """Its calls end with a status; its successor serves the same version as the other front end."""
    async with traffic(service, model) as callers:
        seen = len(service.logged())
        new = model.add()
        load = asyncio.create_task(admin.load(model))
        await asyncio.to_thread(service.wait_for, "spawned", after=seen)
        kill(service.pid("frontend-0"))
        await load
        after = callers.sent
        await callers.goes_on(100)
    ends = callers.ends()
    assert ends.keys() <= {"OK", "UNAVAILABLE", "STREAM_ENDED", "ENGINE_LOST"}, ends
    assert {answer.version for answer in callers.answers if answer.sent > after and not answer.reason} == {
        new
    }
    await settled(service)


# -- by looking ---------------------------------------------------------------------------------


async def test_new_versions_are_found_by_looking(service: Service, model: Model, admin: Admin) -> None:
    """Switched on while the service runs."""
    async with traffic(service, model) as callers:
        await admin("UpdateSettings", updates=updates(**{"models.poll_s": "0.2"}))
        try:
            old, new = model.newest, model.add()
            changed = await asyncio.to_thread(service.wait_for, "models changed", serving=[f"scale/{new}"])
            after = callers.sent
            await callers.goes_on()
        finally:
            await admin("UpdateSettings", updates=updates(**{"models.poll_s": None}))
    assert changed["author"] == "poll"
    assert callers.versions() == {old, new}
    assert callers.versions(after) == {new}
    await settled(service)
