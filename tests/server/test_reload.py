"""Settings that change while the service runs, as its children take them up."""

import threading
from dataclasses import replace
from typing import Any, cast

import pytest

from scheduler import _ring
from scheduler.errors import Overloaded
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server import control
from server.configuration import load_settings
from server.engine import Engine
from server.lineup import Lineup, Wishes, line_up
from server.repository import Manifest, Repository, load_repository
from server.resources import Watch
from server.settings import Settings, bundled_repository
from server.sizing import batch_plan
from tests.scheduler.world import World
from tests.server.world import FrontEnd, request

MS = 1_000_000
DEADLINE_S = 10.0


def with_limits(number: int, **changes: int) -> tuple[Any, ...]:
    """The default limits, with another one for a class."""
    limits = list(Settings().class_limits)
    limits[number - 1] = replace(limits[number - 1], **changes)
    return tuple(limits)


@pytest.mark.usefixtures("no_way_back")
def test_front_end_uses_other_limits_from_the_next_request_on(front_end: FrontEnd) -> None:
    """Timeout, key and queue; what has been let in keeps what it got."""
    front_end.submit(request(priority=3), arrived_ns=_ring.now_ns())
    ((_, _, _, old_key, _, old_deadline_ns),) = front_end.engine.look()
    front_end.desk.change(
        with_limits(3, slack_ns=7_000 * MS, default_timeout_ns=9_000 * MS, queue_limit=2),
        bulk_quantum_ns=10 * MS,
        early_refusal=True,
        model_limits={},
    )
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


class Marks:
    """In the place of the watch over host and device: the settings that it was told."""

    def __init__(self) -> None:
        self.changed: list[Settings] = []

    def change(self, settings: Settings) -> None:
        self.changed.append(settings)


def serving(manifest: Manifest) -> Lineup:
    """This model in its newest version, in the only place."""
    return line_up(Repository((manifest,), None), Wishes(), 1)


def change(**scheduler: object) -> control.Message:
    """What the supervisor says of settings like these."""
    settings = load_settings({"scheduler": scheduler}, environ={})
    return {"type": "change", "revision": 7, "settings": settings.model_dump_json()}


def test_engine_uses_other_settings_from_the_next_decision_on(manifest: Manifest) -> None:
    """Its leader waits for company for an hour; then the class need not wait any more."""
    hour = load_settings(
        {"scheduler": {"classes": {"background_tasks": {"max_wait_ms": 3_600_000}}}}, environ={}
    )
    world = World(plans=[batch_plan(hour, manifest)])
    marks = Marks()
    engine = Engine(world.dispatcher, serving(manifest), [(1, 2, 4)], cast(Watch, marks))
    ours, theirs = control.channel()
    obeying = threading.Thread(target=engine.obey, args=(theirs,), daemon=True)
    obeying.start()
    try:
        world.submit("a", cls=PriorityClass.BACKGROUND_TASKS)
        assert world.run_once() is None
        control.send(ours, change(classes={"background_tasks": {"max_wait_ms": 0}}))
        assert control.receive(ours) == {"type": "changed", "revision": 7}
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
    assert [settings.scheduler.classes.background_tasks.max_wait_ms for settings in marks.changed] == [0]


def test_engine_learns_anew_what_is_urgent(manifest: Manifest) -> None:
    """Of a class whose slack has come below the quantum: a reserved instance takes it from then on."""
    world = World(plans=[batch_plan(Settings(), manifest)])
    try:
        world.submit("a", cls=PriorityClass.BATCH_PROCESSING)
        world.clock.advance(100 * MS)
        engine = Engine(world.dispatcher, serving(manifest), [(1, 2, 4)], cast(Watch, Marks()))
        engine.change(change(classes={"batch_processing": {"slack_ms": 1}}))
        assert world.dispatcher.next_batch(reserved=True) is not None
    finally:
        world.close()


def test_engine_takes_up_another_budget(manifest: Manifest) -> None:
    """The size worth waiting for follows, by what is known of how long batches take."""
    world = World(plans=[replace(batch_plan(Settings(), manifest), buckets=(1, 2, 4))])
    try:
        world.latency.seed(0, {1: 2 * MS, 2: 3 * MS, 4: 5 * MS})
        engine = Engine(world.dispatcher, serving(manifest), [(1, 2, 4)], cast(Watch, Marks()))
        found = []
        for budget_ms in (4, 100, 1):
            engine.change(change(latency_budget_ms=budget_ms))
            world.dispatcher.poll()
            found.append(world.dispatcher.targets.sizes[0])
        assert found == [2, 4, 1]
    finally:
        world.close()
