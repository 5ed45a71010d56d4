"""What an engine publishes of its predictions, and what a front end makes of it."""

from collections.abc import Callable

import pytest

from scheduler.dispatcher import PUBLISH_EVERY_NS, Batch
from scheduler.forecast import REFRESH_NS, Forecast, Forecasts
from scheduler.policy import BatchPlan
from tests.scheduler.world import EAGER, MS, World

MakeWorld = Callable[..., World]
# Full batches of 8 take 8 ms, smaller ones 2, 3 and 5.
FORECAST = Forecast(target=8, item_ns=MS, least_ns=((1, 2 * MS), (2, 3 * MS), (4, 5 * MS), (8, 8 * MS)))
FIGURES = {1: 2 * MS, 2: 3 * MS, 4: 5 * MS, 8: 8 * MS}


@pytest.mark.parametrize(("items", "ms"), [(1, 2), (2, 3), (3, 5), (4, 5), (5, 8), (8, 8), (99, 8)])
def test_a_batch_takes_as_long_as_its_bucket(items: int, ms: float) -> None:
    """More than the largest: as long as that."""
    assert FORECAST.batch_ns(items) == ms * MS


@pytest.mark.parametrize(
    ("ahead_ms", "rows", "done_ms"),
    [
        (0, 1, 2),  # alone, in the smallest batch
        (0, 3, 5),
        (0, 8, 8),
        (0, 9, 8 + 2),  # the last row has a batch of its own
        (0, 16, 16),
        (0.9, 1, 2),  # less than an item is none
        (1, 1, 3),  # shares its batch with what is queued right before it
        (7, 1, 8),
        (8, 1, 8 + 2),
        (7, 2, 8 + 2),
        (80, 1, 80 + 2),
        (83, 6, 88 + 2),
    ],
)
def test_done_when_the_batches_before_it_and_its_own_are(ahead_ms: float, rows: int, done_ms: float) -> None:
    """Items fill batches in the order in which they are queued."""
    assert FORECAST.done_ns(int(ahead_ms * MS), rows) == done_ms * MS


def test_two_instances_share_the_batches_before_it() -> None:
    """An item costs half of the engine's time then; its own batch takes as long as ever."""
    forecast = Forecast(8, MS // 2, FORECAST.least_ns)
    assert forecast.done_ns(8 * MS, 1) == 8 * MS + 2 * MS


# -- from engine to front end -------------------------------------------------------------------


def forecasts(world: World) -> Forecasts:
    """As another front end would begin to read them."""
    return Forecasts(world.arena, 0)


def warm(world: World) -> None:
    for model in range(len(world.plans)):
        world.latency.seed(model, FIGURES)
    world.dispatcher.warm()


def test_nothing_is_known_before_the_engine_is_warm(world: World) -> None:
    """And nobody is refused by it."""
    forecast = forecasts(world).of(0, world.clock.now_ns())
    assert (forecast.item_ns, forecast.batch_ns(8)) == (0, 0)


@pytest.mark.parametrize(("instances", "item_ns"), [(1, MS), (2, MS // 2), (3, MS // 3)])
def test_warm_up_is_published_at_once(make_world: MakeWorld, instances: int, item_ns: int) -> None:
    """The target, what an item costs with so many instances, and what each bucket takes."""
    world = make_world(instances=instances)
    warm(world)
    assert forecasts(world).of(0, world.clock.now_ns()) == Forecast(8, item_ns, FORECAST.least_ns)


def test_models_are_published_each_for_itself(make_world: MakeWorld) -> None:
    """With their own targets and figures."""
    plans = [EAGER, BatchPlan((1, 2, 4, 8), (0,) * 5, 5 * MS)]
    world = make_world(plans=plans)
    warm(world)
    read = forecasts(world)
    assert [read.of(model, world.clock.now_ns()).target for model in range(2)] == [8, 4]
    assert [read.of(model, world.clock.now_ns()).item_ns for model in range(2)] == [MS, 5 * MS // 4]


def run_one(world: World, name: str, took_ns: int) -> None:
    """A batch of one that takes so long."""
    world.submit(name)
    batch = world.dispatcher.poll()
    assert isinstance(batch, Batch)
    world.clock.advance(took_ns)
    world.instance.run(batch)
    world.partition.drain()


def test_what_is_learned_is_published_every_now_and_then(world: World) -> None:
    """Not with every batch: of faster ones is told when the interval is over. All buckets follow the one."""
    warm(world)
    for number in range(40):  # too short to be told of, together
        run_one(world, str(number), PUBLISH_EVERY_NS // 50)
    assert forecasts(world).of(0, world.clock.now_ns()).least_ns == FORECAST.least_ns
    run_one(world, "last", PUBLISH_EVERY_NS)
    learned = dict(forecasts(world).of(0, world.clock.now_ns()).least_ns)
    assert learned == {bucket: ns // 5 for bucket, ns in FIGURES.items()}
    assert learned[1] == PUBLISH_EVERY_NS // 50


def test_a_slow_spell_does_not_raise_what_is_refused_by(world: World) -> None:
    """A batch may take that long, but it may also be as fast as at warm-up: nobody is refused by a spell."""
    warm(world)
    for number in range(80):
        run_one(world, str(number), 50 * MS)
    assert world.latency.predict_ns(0, 1) == 50 * MS
    assert forecasts(world).of(0, world.clock.now_ns()).least_ns == FORECAST.least_ns


def test_a_front_end_keeps_what_it_has_read_for_a_while(world: World) -> None:
    """A request pays for a look at a clock; what is published meanwhile is seen a little later."""
    read = forecasts(world)
    now_ns = world.clock.now_ns()
    assert read.of(0, now_ns).item_ns == 0
    warm(world)
    assert read.of(0, now_ns + REFRESH_NS - 1).item_ns == 0
    assert read.of(0, now_ns + REFRESH_NS).item_ns == MS


def test_when_an_instance_is_free_is_never_kept(world: World) -> None:
    """It changes with every batch."""
    read = forecasts(world)
    assert read.free_at_ns() == 0
    world.port.publish_free_at(77)
    assert read.free_at_ns() == 77
