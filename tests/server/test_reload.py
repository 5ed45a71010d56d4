"""Settings that change while the service runs: what is taken up, and what is told."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler import _ring
from scheduler.errors import Overloaded
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server import control
from server.children import Child
from server.engine import Engine
from server.repository import Manifest, load_repository
from server.settings import Settings, bundled_repository, load_settings
from server.sizing import batch_plan
from server.supervisor import Supervisor
from tests.scheduler.world import World
from tests.server.world import FrontEnd, request

MS = 1_000_000
SMALL = "[server]\nfrontends = 2\n[scheduler]\nslots_per_frontend = 64\n"
DEADLINE_S = 10.0


class Service:
    """A supervisor with a settings file, and ends of channels in the place of its children."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.write("")
        load = partial(load_settings, {}, config=file, environ={})
        repository = load_repository(bundled_repository(), default_model=None)
        self.supervisor = Supervisor(load(), repository, load)
        self._children: dict[str, socket.socket] = {}
        for child in self.supervisor._children():
            child.socket, self._children[child.name] = control.channel()
            self._children[child.name].setblocking(False)
            self.supervisor._attachments.attach(child.name)

    def write(self, text: str) -> None:
        """The file from now on."""
        self._file.write_text(SMALL + text)

    def child(self, name: str) -> Child:
        (found,) = (child for child in self.supervisor._children() if child.name == name)
        return found

    def heard(self) -> dict[str, list[control.Message]]:
        """What each child has been told since it was last asked."""
        return {name: list(control.unread(end)) for name, end in self._children.items()}

    @property
    def settings(self) -> Settings:
        """What a child that is started now is told."""
        return self.supervisor._settings

    def close(self) -> None:
        for child in self.supervisor._children():
            assert child.socket is not None
            child.socket.close()
            self._children[child.name].close()
        for fd in (self.supervisor._arena_fd, *self.supervisor._eventfds.values()):
            os.close(fd)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "tickring.toml")
    yield service
    service.close()


def reload(service: Service) -> list[Any]:
    """What is logged of it."""
    with capture_logs() as lines:
        service.supervisor.reload()
    return [(line["log_level"], line["event"]) for line in lines]


SLACK = "[scheduler.classes.batch_processing]\nslack_ms = 70\n"


def test_classes_are_told_to_every_child_and_kept_for_the_next(service: Service) -> None:
    """All five, as a whole."""
    service.write(SLACK)
    assert reload(service) == [("info", "classes changed")]
    wanted = service.settings.scheduler.classes.model_dump()
    assert wanted["batch_processing"]["slack_ms"] == 70
    assert service.heard() == {
        name: [{"type": "classes", "classes": wanted}] for name in ("engine-0", "frontend-0", "frontend-1")
    }
    assert service.settings.class_limits[2].slack_ns == 70 * MS


def test_child_that_is_not_attached_learns_it_when_it_attaches(service: Service) -> None:
    """It is not listening yet."""
    child = service.child("frontend-1")
    assert service.supervisor._attachments.died(child.name).ask == ["engine-0"]
    service.supervisor._attachments.let_go("engine-0", child.name)
    child.warm = True
    service.write(SLACK)
    reload(service)
    assert service.heard()["frontend-1"] == []
    service.supervisor._attach_clean()
    (attach,) = service.heard()["frontend-1"]
    assert attach["type"] == "attach"
    assert attach["classes"]["batch_processing"]["slack_ms"] == 70


def test_change_of_anything_else_is_warned_about(service: Service) -> None:
    """The classes are taken up all the same; what needs a restart stays as it was."""
    service.write(f"latency_budget_ms = 99\n{SLACK}")
    before = service.settings
    assert reload(service) == [
        ("warning", "only [scheduler.classes] changes without a restart, the rest stays as it was"),
        ("info", "classes changed"),
    ]
    assert service.settings == before.with_classes(service.settings.scheduler.classes.model_dump())
    assert service.settings.scheduler.latency_budget_ms == before.scheduler.latency_budget_ms
    assert len(service.heard()["engine-0"]) == 1


@pytest.mark.parametrize(
    "text", ["slack_ms = 1\n", "[scheduler.classes.x]\n", "[", SLACK + "queue_limit = 0"]
)
def test_bad_settings_change_nothing(service: Service, text: str) -> None:
    """They are told, and the old ones stay."""
    before = service.settings
    service.write(text)
    assert reload(service) == [("error", "settings not reloaded, nothing was changed")]
    assert service.settings == before
    assert all(messages == [] for messages in service.heard().values())


def test_reload_without_a_change_tells_nobody(service: Service) -> None:
    """Nor one that only writes out what was the default."""
    service.write("[scheduler.classes.batch_processing]\nslack_ms = 50\n")
    assert reload(service) == [("info", "settings reloaded, no class has changed")]
    assert all(messages == [] for messages in service.heard().values())


def test_reload_while_stopping_is_too_late(service: Service) -> None:
    """The children are busy with their last requests."""
    service.supervisor._stopping = True
    service.write(SLACK)
    assert reload(service) == []
    assert all(messages == [] for messages in service.heard().values())


# -- in the children ----------------------------------------------------------------------------


def with_limits(number: int, **changes: int) -> tuple[Any, ...]:
    """The default limits, with another one for a class."""
    limits = list(Settings().class_limits)
    limits[number - 1] = replace(limits[number - 1], **changes)
    return tuple(limits)


def test_front_end_uses_other_limits_from_the_next_request_on(front_end: FrontEnd) -> None:
    """Timeout, key and queue; what has been let in keeps what it got."""
    front_end.submit(request(priority=3), arrived_ns=_ring.now_ns())
    ((_, _, _, old_key, _, old_deadline_ns),) = front_end.engine.look()
    front_end.desk.change(with_limits(3, slack_ns=7_000 * MS, default_timeout_ns=9_000 * MS, queue_limit=2))
    assert front_end.engine.look()[0][3:6:2] == (old_key, old_deadline_ns)
    front_end.complete(Outcome.RESULT)
    arrived_ns = _ring.now_ns()
    front_end.submit(request(2, priority=3), arrived_ns=arrived_ns)
    ((_, _, _, key, _, deadline_ns),) = front_end.engine.look()
    assert arrived_ns <= key - 7_000 * MS <= _ring.now_ns()
    assert deadline_ns == arrived_ns + 9_000 * MS
    with pytest.raises(Overloaded, match="2 of 2 are taken"):
        front_end.submit(request(priority=3))


@pytest.fixture
def manifest() -> Manifest:
    (manifest,) = load_repository(bundled_repository(), default_model=None).manifests
    return manifest


def classes(**tables: dict[str, float]) -> dict[str, Any]:
    """The class table with these changes, as a control message carries it."""
    return load_settings({"scheduler": {"classes": tables}}, environ={}).scheduler.classes.model_dump()


def test_engine_uses_other_classes_from_the_next_decision_on(manifest: Manifest) -> None:
    """Its leader waits for company for an hour; then the class need not wait any more."""
    hour = load_settings(
        {"scheduler": {"classes": {"background_tasks": {"max_wait_ms": 3_600_000}}}}, environ={}
    )
    world = World(plans=[batch_plan(hour, manifest)])
    engine = Engine(world.dispatcher, hour, [manifest], [(1, 2, 4)])
    ours, theirs = control.channel()
    obeying = threading.Thread(target=engine.obey, args=(theirs,), daemon=True)
    obeying.start()
    try:
        world.submit("a", cls=PriorityClass.BACKGROUND_TASKS)
        assert world.run_once() is None
        control.send(ours, {"type": "classes", "classes": classes(background_tasks={"max_wait_ms": 0})})
        batch = world.dispatcher.next_batch()
        assert batch is not None
        world.instance.run(batch)
    finally:
        control.send(ours, {"type": "stop"})
        obeying.join(DEADLINE_S)
        ours.close()
        theirs.close()
        world.close()
    assert not obeying.is_alive()


def test_engine_learns_anew_what_is_urgent(manifest: Manifest) -> None:
    """Of a class whose slack has come below the quantum: a reserved instance takes it from then on."""
    settings = Settings()
    world = World(plans=[batch_plan(settings, manifest)])
    try:
        world.submit("a", cls=PriorityClass.BATCH_PROCESSING)
        world.clock.advance(100 * MS)
        engine = Engine(world.dispatcher, settings, [manifest], [(1, 2, 4)])
        engine.use_classes(classes(batch_processing={"slack_ms": 1}))
        assert world.dispatcher.next_batch(reserved=True) is not None
    finally:
        world.close()
