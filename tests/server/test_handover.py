"""How other engines take over: prepared whole or not at all, and the old ones go once they owe nothing."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from scheduler.partition import Outcome
from server import handover
from server.children import Child
from server.handover import PreparationFailed
from tests.server.handover_world import Service, revision, rounds

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks every now and then looks in every turn of the event loop."""
    monkeypatch.setattr(handover, "LOOK_EVERY_S", 0)


@pytest.fixture
def make() -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make_one(**options: Any) -> Service:
        services.append(Service(**options))
        return services[-1]

    yield make_one
    for service in services:
        service.close()


@pytest.fixture
def service(make: Callable[..., Service]) -> Service:
    """One device, served by engine 0, and two front ends."""
    return make()


async def under_way(service: Service, number: int = 1) -> asyncio.Task[Sequence[Child]]:
    """A preparation that has begun."""
    task = asyncio.create_task(service.handover.prepare(revision(number)))
    await rounds()
    return task


async def failure(preparation: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> str:
    with pytest.raises(PreparationFailed) as failed:
        await preparation
    return str(failed.value)


# -- preparing ----------------------------------------------------------------------------------


async def test_a_successor_is_prepared_in_the_other_chair(service: Service) -> None:
    """With what it is to serve; who serves does not notice."""
    preparing = await under_way(service, 7)
    assert (service.spawned, service.duties()) == (["engine-1"], "serving preparing")
    assert service.engines[1].revision.number == 7
    assert not preparing.done()
    service.say(service.engines[1], ready=True)
    assert await preparing == [service.engines[1]]
    assert service.handover.serving() == [service.engines[0]]
    assert service.engines[0].revision.number == 0
    assert service.told(service.engines[0]) == []


async def test_every_device_has_its_own(make: Callable[..., Service]) -> None:
    """All of them together or none."""
    service = make(devices=3)
    preparing = await under_way(service)
    assert service.spawned == ["engine-3", "engine-4", "engine-5"]
    for engine in service.engines[3:]:
        assert not preparing.done()
        service.say(engine, ready=True)
    assert await preparing == service.engines[3:]


async def test_one_that_cannot_serve_says_why(make: Callable[..., Service]) -> None:
    """The others are ended; then it can be tried again."""
    service = make(devices=2)
    preparing = await under_way(service)
    good, bad = service.engines[2:]
    service.say(good, ready=True)
    bad.failure = "its file is not there"
    service.exit(bad)
    assert await failure(preparing) == "its file is not there"
    assert service.killed(good)
    assert service.duties() == "serving serving retiring vacant"
    again = await under_way(service)
    assert service.spawned == ["engine-2", "engine-3"], "before the chair was free"
    service.exit(good)
    await rounds()
    assert service.spawned[2:] == ["engine-2", "engine-3"]
    assert bad.failure == ""
    for engine in service.engines[2:]:
        service.say(engine, ready=True)
    assert await again == service.engines[2:]


async def test_one_that_dies_without_a_word(service: Service) -> None:
    """Also after it was ready: until it is told to serve it must live."""
    for ready in (False, True):
        preparing = await under_way(service)
        service.engines[1].ready = ready
        service.exit(service.engines[1])
        assert await failure(preparing) == "its process died with code -9"
        assert service.duties() == "serving vacant"


async def test_one_that_takes_too_long(service: Service) -> None:
    """It is ended; the setting is named."""
    assert await failure(service.handover.prepare(revision(1, prepare_timeout_s=0.01))) == (
        "not ready within executor.prepare_timeout_s, 0.01 s"
    )
    assert service.killed(service.engines[1])
    assert service.duties() == "serving retiring"
    service.exit(service.engines[1])
    assert service.duties() == "serving vacant"


async def test_nothing_is_prepared_for_a_service_that_ends(service: Service) -> None:
    """Nor goes on being."""
    preparing = await under_way(service)
    service.stopping = True
    service.handover.moved()
    assert await failure(preparing) == "the server is draining"
    assert service.killed(service.engines[1])
    assert await failure(service.handover.prepare(revision(2))) == "the server is draining"
    assert service.spawned == ["engine-1"]


async def test_a_preparation_that_nobody_waits_for_is_ended(service: Service) -> None:
    """No process is left that belongs to no change."""
    preparing = await under_way(service)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert service.killed(service.engines[1])
    assert service.duties() == "serving retiring"


async def test_a_process_that_cannot_be_started(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no bug: there may be no memory for one more. Its chair is free again."""

    def fail(child: Child) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(service, "spawn", fail)
        assert await failure(service.handover.prepare(revision(1))) == (
            "its process cannot be started: Cannot allocate memory"
        )
    assert service.duties() == "serving vacant"
    assert await service.prepared() == [service.engines[1]]


async def test_chairs_are_waited_for(service: Service) -> None:
    """A change right after another one begins once the engine before the last has gone."""
    await service.changed(1)
    assert service.duties() == "retiring serving"
    preparing = await under_way(service, 2)
    assert service.spawned == ["engine-1"]
    service.let_go(0, 0, 1)
    await rounds()
    assert not preparing.done()
    service.exit(service.engines[0])
    await rounds()
    assert service.spawned == ["engine-1", "engine-0"]
    service.say(service.engines[0], ready=True)
    assert await preparing == [service.engines[0]]


# -- committing ---------------------------------------------------------------------------------


async def test_everybody_goes_by_the_new_revision_at_once(service: Service) -> None:
    """Who serves from now on, and every front end; who retires has the old one to the end."""
    service.handover.commit(revision(1), await service.prepared())
    assert service.duties() == "retiring serving"
    assert service.handover.serving() == [service.engines[1]]
    assert [engine.revision.number for engine in service.engines] == [0, 1]
    assert {frontend.revision.number for frontend in service.frontends} == {1}


async def test_settings_alone_leave_the_engines_where_they_are(service: Service) -> None:
    """Nobody retires."""
    service.handover.commit(revision(1), ())
    await rounds()
    assert service.duties() == "serving vacant"
    assert service.engines[0].revision.number == 1
    assert service.told(service.engines[0]) == []


async def test_an_old_engine_that_is_dead_leaves_its_chair(service: Service) -> None:
    """It would have been started again; that is not wanted any more."""
    chairs = await service.prepared()
    service.exit(service.engines[0])
    service.handover.commit(revision(1), chairs)
    assert service.duties() == "vacant serving"
    await asyncio.wait_for(service.handover.seen_off(), 1)


async def test_an_old_engine_that_is_still_warming_up_is_ended(service: Service) -> None:
    """It has got nothing yet, and would not answer."""
    chairs = await service.prepared()
    service.engines[0].ready = False
    service.handover.commit(revision(1), chairs)
    assert (service.duties(), service.killed(service.engines[0])) == ("retiring serving", True)
    assert service.engines[0].holders == set()
    service.exit(service.engines[0])
    assert service.duties() == "vacant serving"


async def test_an_old_engine_is_told_to_stop_once_every_front_end_has_let_go(service: Service) -> None:
    """Not before: what they hold may still go there."""
    await service.changed()
    old = service.engines[0]
    assert old.holders == {"frontend-0", "frontend-1"}
    service.let_go(0, 1)
    await rounds()
    assert service.told(old) == []
    service.let_go(0, 0)
    await rounds()
    assert service.told(old) == ["stop"]
    assert not service.killed(old)
    assert service.duties() == "retiring serving"
    service.exit(old)
    assert service.duties() == "vacant serving"


async def test_an_old_engine_answers_what_it_has_before_it_is_told_to_stop(service: Service) -> None:
    """Queued and in a batch."""
    native = service.arena.native
    engine_fds, frontend_fds = service.fds[:2], service.fds[2:]
    front_end = _ring.FrontendPort(native, 0, frontend_fds[0], engine_fds)
    engine = _ring.EnginePort(native, 0, engine_fds[0], frontend_fds)
    first = front_end.first_slot
    assert front_end.push(0, 0, 0, [first, first + 1], 1, 1, _ring.NO_DEADLINE, 1, False)
    await service.changed()
    service.let_go(0, 0, 1)
    slots = np.empty(1, np.uint32)
    for _ in range(2):
        await rounds()
        assert service.told(service.engines[0]) == []
        assert engine.take(0, 1, 0, slots) == 1
        await rounds()
        assert service.told(service.engines[0]) == []
        engine.complete(slots, np.array([Outcome.RESULT], np.uint8), 1, 1, 1, 1, 1)
    await rounds()
    assert service.told(service.engines[0]) == ["stop"]


async def test_an_old_engine_that_does_not_stop_is_ended(service: Service) -> None:
    """Its chair is needed for the next change."""
    service.engines[0].revision = revision(0, stall_timeout_s=0.01)
    await service.changed()
    service.let_go(0, 0, 1)
    await rounds()
    assert service.told(service.engines[0]) == ["stop"]
    async with asyncio.timeout(DEADLINE_S):
        while not service.killed(service.engines[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    service.exit(service.engines[0])
    assert service.duties() == "vacant serving"


async def test_an_old_engine_that_stops_in_time_is_not_missed(service: Service) -> None:
    """Nor is the next process in its chair taken for it."""
    service.engines[0].revision = revision(0, stall_timeout_s=0.01)
    await service.changed()
    service.let_go(0, 0, 1)
    await rounds()
    service.exit(service.engines[0])
    preparing = await under_way(service, 2)
    await asyncio.sleep(0.02)  # longer than the old one had: it would be ended for what that one did
    assert not service.killed(service.engines[0])
    service.say(service.engines[0], ready=True)
    await preparing


async def test_a_front_end_that_dies_holds_nothing(service: Service) -> None:
    """Its successor knows nothing of the old engine, and so never lets go of it."""
    await service.changed()
    service.let_go(0, 1)
    service.exit(service.frontends[0])
    service.spawn(service.frontends[0])
    service.attached.add("frontend-0")
    await rounds()
    assert service.told(service.engines[0]) == ["stop"]


async def test_only_front_ends_that_have_pushed_are_asked(service: Service) -> None:
    """One that was not attached to the rings holds nothing."""
    service.attached.discard("frontend-1")
    await service.changed()
    assert service.engines[0].holders == {"frontend-0"}


async def test_an_old_engine_that_dies_leaves_its_chair(service: Service) -> None:
    """However much it still had; who pushed to it hears of its loss otherwise."""
    await service.changed()
    waiting = asyncio.create_task(service.handover.seen_off())
    await rounds()
    assert not waiting.done()
    service.exit(service.engines[0])
    await asyncio.wait_for(waiting, 1)
    assert service.duties() == "vacant serving"


async def test_the_next_process_in_a_chair_is_not_told_to_stop(service: Service) -> None:
    """The front ends let go of who sat there before when somebody else sits there already."""
    await service.changed(1)
    service.exit(service.engines[0])  # before anybody has let go of it
    chairs = await service.prepared(2)
    assert chairs == [service.engines[0]]
    service.let_go(0, 0, 1)
    await rounds()
    assert service.told(service.engines[0]) == []
    service.handover.commit(revision(2), chairs)
    await rounds()
    assert service.told(service.engines[0]) == []
    assert service.duties() == "serving retiring"


async def test_the_next_process_in_the_chair_of_a_busy_engine_is_not_told_to_stop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has moved in between two looks at what the old one still had."""
    monkeypatch.setattr(handover, "LOOK_EVERY_S", 0.01)
    front_end = _ring.FrontendPort(service.arena.native, 0, service.fds[2], service.fds[:2])
    assert front_end.push(0, 0, 0, [front_end.first_slot], 1, 1, _ring.NO_DEADLINE, 1, False)
    await service.changed(1)
    service.let_go(0, 0, 1)
    preparing = await under_way(service, 2)
    service.exit(service.engines[0])
    await rounds()
    assert service.spawned[-1] == "engine-0"
    await asyncio.sleep(0.03)  # there has been another look
    assert service.told(service.engines[0]) == []
    preparing.cancel()


async def test_a_word_of_old_does_not_let_go_of_the_next_process(service: Service) -> None:
    """Who retires next waits for words of its own."""
    await service.changed(1)
    service.let_go(0, 0)
    service.exit(service.engines[0])
    await service.changed(2)
    service.let_go(1, 0, 1)
    service.exit(service.engines[1])
    await service.changed(3)
    assert service.engines[0].holders == {"frontend-0", "frontend-1"}
    assert service.told(service.engines[0]) == []


# -- taken up -----------------------------------------------------------------------------------


async def test_a_change_is_there_once_everybody_goes_by_it(service: Service) -> None:
    """Every process that serves; a newer revision will do as well."""
    service.handover.commit(revision(3), ())
    waiting = asyncio.create_task(service.handover.taken_up(revision(3)))
    for child, taken_up in ((service.engines[0], 3), (service.frontends[1], 4), (service.frontends[0], 2)):
        await rounds()
        service.say(child, taken_up=taken_up)
    await rounds()
    assert not waiting.done()
    service.say(service.frontends[0], taken_up=3)
    await asyncio.wait_for(waiting, 1)


async def test_who_died_is_not_waited_for(service: Service) -> None:
    """The next process in its place goes by the new revision from its start."""
    service.handover.commit(revision(1), ())
    waiting = asyncio.create_task(service.handover.taken_up(revision(1)))
    service.say(service.engines[0], taken_up=1)
    service.say(service.frontends[0], taken_up=1)
    await rounds()
    assert not waiting.done()
    service.exit(service.frontends[1])
    await asyncio.wait_for(waiting, 1)


async def test_who_retires_is_not_waited_for(service: Service) -> None:
    """It goes by the old revision to its end."""
    await service.changed(1)
    for frontend in service.frontends:
        service.say(frontend, taken_up=1)
    await asyncio.wait_for(service.handover.taken_up(revision(1)), 1)
    assert service.engines[0].taken_up == 0


async def test_nobody_waits_for_a_service_that_ends(service: Service) -> None:
    """Its children may never say anything more."""
    await service.changed(1)
    waiting = [
        asyncio.create_task(service.handover.taken_up(revision(1))),
        asyncio.create_task(service.handover.seen_off()),
    ]
    await rounds()
    assert not any(task.done() for task in waiting)
    service.stopping = True
    service.handover.moved()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
