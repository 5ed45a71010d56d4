"""Models that come and go in a running service, while it is asked all the time: nobody else notices."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import PATIENCE_S, RpcStream, streamed, unary
from tests.e2e.conftest import Launch
from tests.e2e.live import (
    CHANGE_TIMEOUT_S,
    SETTINGS,
    Admin,
    Deadly,
    Endless,
    Model,
    admin_of,
    alive,
    answered,
    engines,
    kill,
    states,
    traffic,
)
from tests.e2e.service import Service
from tests.server.admin_calls import updates
from tickring.v1 import types_pb2

Code = grpc.StatusCode
SLOTS = 256
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


def books(service: Service) -> dict[str, Any]:
    """What `/status` says."""
    url: str = service.wait_for("ready")["status"]
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Polls what has no event to await."""

    async def poll() -> None:
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), CHANGE_TIMEOUT_S)


def spawned_last(service: Service) -> str:
    """The child."""
    return str([line["child"] for line in service.logged() if line["event"] == "spawned"][-1])


async def alone(service: Service) -> str:
    """The engine that serves, once no other is left."""
    await until(lambda: len(books(service)["engines"]) == 1)
    (engine,) = books(service)["engines"]
    assert engines(service) == {service.pid(engine["name"])}
    return str(engine["name"])


async def settled(service: Service) -> None:
    """Returns once that is so and every item has ended, whose slots are free then."""
    await alone(service)
    await until(lambda: all(frontend["open"] == 0 for frontend in books(service)["frontends"]))
    assert all(frontend["slots_free"] == SLOTS for frontend in books(service)["frontends"])


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
        await settled(service)
        await callers.goes_on()
    assert callers.versions() == {old, new}
    assert callers.versions(after) == {new}
    assert not alive(old_engine)
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


async def test_what_was_let_in_is_answered_before_a_version_goes(
    service: Service, model: Model, admin: Admin, channel: grpc.aio.Channel
) -> None:
    """Also what is still held at the entrance. The others are answered by new engines meanwhile."""
    old, new = model.newest, model.add()
    await admin.load(model, old)
    engine = await alone(service)
    pid = service.pid(engine)
    bulk = types_pb2.PRIORITY_BACKGROUND_TASKS
    stream = RpcStream(channel)
    with service.paused(engine):
        await stream.send(*[streamed(n, model.ask(n, str(old), priority=bulk)) for n in range(1, HELD + 1)])
        await until(lambda: sum(f["slots_free"] for f in books(service)["frontends"]) == 2 * SLOTS - HELD)
        waiting = books(service)["engines"][0]["waiting"]
        assert 0 < waiting < HELD, "all are queued, or none: nothing is held"
        unload = asyncio.create_task(admin.unload(model, old))
        await until(lambda: len(books(service)["engines"]) == 2)
        # Answered by nobody but the new engine: the old one stands still.
        ending = await unary(channel, model.ask(), timeout_s=CHANGE_TIMEOUT_S)
        assert answered(ending) == new
        refused = await unary(channel, model.ask(version=str(old)))
        assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, "MODEL_NOT_READY")
        assert not unload.done()
        assert alive(pid)
    await stream.half_close()
    answers, end = await stream.rest()
    assert end.code is Code.OK
    assert sorted(number for number, _ in answers) == list(range(1, HELD + 1))
    assert {answered(ending, number) for number, ending in answers} == {old}
    await unload
    assert not alive(pid)
    await settled(service)


async def test_new_versions_are_found_by_looking(service: Service, model: Model, admin: Admin) -> None:
    """Switched on while the service runs."""
    async with traffic(service, model) as callers:
        await admin("UpdateSettings", updates=updates(**{"models.poll_s": "0.2"}))
        old, new = model.newest, model.add()
        changed = await asyncio.to_thread(service.wait_for, "models changed", serving=[f"scale/{new}"])
        assert changed["author"] == "poll"
        after = callers.sent
        await callers.goes_on()
        await admin("UpdateSettings", updates=updates(**{"models.poll_s": None}))
    assert callers.versions() == {old, new}
    assert callers.versions(after) == {new}
    await settled(service)


# -- what cannot be loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"file": b"no model"}, "engines cannot serve so: scale version "),
        ({"sha256": "0" * 64}, "model.pt: sha256 is "),
        ({"file": zoo.archive(Deadly())}, "engines cannot serve so: its process died"),
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
    """Its engine is ended when its time is over; so is one that somebody kills."""
    good = model.newest
    number = model.add(zoo.archive(Endless()))
    async with traffic(service, model) as callers:
        seen = len(service.logged())
        load = asyncio.create_task(admin.cannot_load(model))
        await asyncio.to_thread(service.wait_for, "model is loaded", after=seen, version=number)
        kill(next(line["pid"] for line in service.logged()[seen:] if line["event"] == "spawned"))
        assert (await load).message == "engines cannot serve so: its process died"
        await admin("UpdateSettings", updates=updates(**{"executor.prepare_timeout_s": "1"}))
        assert (await admin.cannot_load(model)).message == (
            "engines cannot serve so: not ready within executor.prepare_timeout_s, 1 s"
        )
        await admin("UpdateSettings", updates=updates(**{"executor.prepare_timeout_s": None}))
        model.remove(number)
        await callers.goes_on()
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
        assert refused.message.startswith("scale version ") or refused.message.startswith(
            "other version 3 has"
        )
        assert "models.max_loaded" in refused.message
    finally:
        other.destroy()
    assert (await admin.cannot_load(other)).code is Code.NOT_FOUND
    assert engines(service) == engine


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
        await asyncio.to_thread(service.wait_for, "model is loaded", after=seen, version=new)
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
