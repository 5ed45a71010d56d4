"""Several engines of one front end: which one a request goes to, where bulk waits, what a loss takes away."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.engines import EQUAL_PART, Engines
from scheduler.entrance import Entrance
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import DEFAULT_LIMITS

MS = 1_000_000
NOW = 1_000 * MS
COUNT = 3
SLOTS = 256
QUANTUM_NS = 10 * MS
# Class indexes.
URGENT, MARKET, BULK = 0, 1, 4


@dataclass
class Service:
    """A front end's part of the way to three engines, whose ends of the lanes are in the test's hands."""

    ready: int = COUNT
    now_ns: int = NOW
    ended: list[tuple[str, Outcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arena = Arena.anonymous(Dimensions(1, 2, SLOTS, 64, 64, engines=COUNT))
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(COUNT + 1)]
        own_fd, *engine_fds = self.fds
        self.partition = Partition(self.arena, 0, own_fd, engine_fds)
        self.ports = [
            _ring.EnginePort(self.arena.native, engine, fd, [own_fd]) for engine, fd in enumerate(engine_fds)
        ]
        self.engines = Engines(self.partition, [Forecasts(self.arena, engine) for engine in range(COUNT)])
        for engine in reversed(range(self.ready)):
            self.engines.came(engine)
        self.entrance = Entrance(
            self.partition, self.engines, DEFAULT_LIMITS, models=2, bulk_quantum_ns=QUANTUM_NS
        )
        self.submissions: dict[str, Submission] = {}

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def foretell(self, engine: int, item_ms: float = 1, batch_ms: float = 1, *, model: int = 0) -> None:
        """Batches of one item, which costs so much; a batch takes so long at least."""
        batch = [round(batch_ms * MS)]
        self.ports[engine].publish_forecast(model, 1, round(item_ms * MS), [1], batch, batch, batch)

    def alike(self) -> None:
        for engine in range(COUNT):
            self.foretell(engine)

    def choose(self, cls: int = URGENT, rows: int = 1, *, model: int = 0) -> int:
        engine, done_ns = self.engines.first_done(model, cls, rows, self.now_ns)
        assert done_ns == 0 or done_ns >= self.now_ns
        return engine

    def enter(
        self, name: str, cls: int = URGENT, rows: int = 1, *, engine: int | None = None, model: int = 0
    ) -> None:
        """To the engine that is chosen for it, or to this one."""

        def ended(submission: Submission) -> None:
            self.ended.append((name, submission.outcome))
            self.partition.release(submission)

        submission = self.submissions[name] = self.partition.reserve(rows, model, cls, ended)
        self.entrance.enter(
            submission,
            engine=self.choose(cls, rows, model=model) if engine is None else engine,
            now_ns=self.now_ns,
            arrived_ns=self.now_ns,
            deadline_ns=_ring.NO_DEADLINE,
            exclusive=False,
        )

    def serve(self, engine: int, count: int = SLOTS, *, model: int = 0) -> int:
        """Takes and answers what is in the lanes of an engine."""
        slots = np.empty(count, np.uint32)
        taken = self.ports[engine].take(model, self.now_ns, 0, slots)
        outcomes = np.full(taken, Outcome.RESULT, np.uint8)
        self.ports[engine].complete(slots[:taken], outcomes, self.now_ns, self.now_ns, self.now_ns, 1, 1)
        return taken

    def ready_for(self, model: int) -> list[int]:
        return sorted(self.engines.ready_for(model))

    def queued(self, cls: int) -> list[int]:
        return [self.partition.depths(engine)[cls] for engine in range(COUNT)]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.partition.check_integrity()
    service.close()


# -- which one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(COUNT))
def test_the_one_that_would_be_done_first(service: Service, first: int) -> None:
    """By what a batch takes there."""
    for engine in range(COUNT):
        service.foretell(engine, batch_ms=1 if engine == first else 2)
    assert service.choose() == first
    assert service.engines.first_done(0, URGENT, 1, NOW) == (first, NOW + MS)


def test_the_one_that_is_free_first(service: Service) -> None:
    """What runs there comes before."""
    service.alike()
    for engine, free_in_ms in enumerate((5, 3, 4)):
        service.ports[engine].publish_free_at(NOW + free_in_ms * MS)
    assert service.choose() == 1
    service.now_ns += 5 * MS  # all of them are late: they end now, at best
    service.engines.used(1, 0)
    assert service.choose() == 0


def test_what_is_queued_of_its_class_or_a_more_urgent_one_comes_before(service: Service) -> None:
    """Less urgent work stands back, and so says nothing."""
    service.alike()
    service.enter("market", MARKET, 10, engine=0)
    service.enter("urgent", URGENT, 4, engine=1)
    service.enter("bulk", BULK, 20, engine=2)
    assert [service.engines.first_done(0, cls, 1, NOW) for cls in (URGENT, MARKET, BULK)] == [
        (0, NOW + MS),
        (2, NOW + MS),
        (1, NOW + 5 * MS),
    ]


def test_each_model_has_its_own_prediction(service: Service) -> None:
    """One device is good at one, another at the other."""
    for model, figures in enumerate([(1, 9, 9), (9, 9, 1)]):
        for engine, batch_ms in enumerate(figures):
            service.foretell(engine, batch_ms=batch_ms, model=model)
    assert [service.choose(model=model) for model in range(2)] == [0, 2]


def test_engines_that_are_alike_take_turns(service: Service) -> None:
    """The one used least recently is next."""
    service.alike()
    for number in range(9):
        service.enter(str(number))
        assert service.serve(number % COUNT) == 1
    assert service.partition.drain() == 9


@pytest.mark.parametrize(("slower", "alike"), [(EQUAL_PART * 0.9, True), (EQUAL_PART * 1.1, False)])
def test_engines_are_alike_as_far_as_can_be_predicted(service: Service, slower: float, alike: bool) -> None:
    """An eighth of the wait more or less makes no difference; and the best is what a caller is told."""
    for engine in range(COUNT):
        service.foretell(engine, batch_ms=1 + slower * (engine != 1))
    chosen = []
    for _ in range(6):
        engine, done_ns = service.engines.first_done(0, URGENT, 1, NOW)
        assert done_ns == NOW + MS
        service.engines.used(engine, 0)
        chosen.append(engine)
    assert chosen == ([0, 1, 2, 0, 1, 2] if alike else [1] * 6)


def test_one_of_which_nothing_is_known_is_tried(service: Service) -> None:
    """And nobody is refused by it."""
    service.foretell(0)
    service.foretell(2)
    assert service.engines.first_done(0, URGENT, 1, NOW) == (1, 0)


def test_only_those_that_are_ready(service: Service) -> None:
    """One that went and came back is as good as any other."""
    service.alike()
    service.engines.went(0)
    chosen = []
    for _ in range(4):
        chosen.append(service.choose())
        service.engines.used(chosen[-1], 0)
    assert chosen == [1, 2, 1, 2]
    service.engines.went(2)
    assert [service.choose() for _ in range(3)] == [1] * 3
    service.engines.went(2)  # it was not ready
    service.engines.came(0)
    assert service.choose() == 0


def test_load_is_spread_as_the_engines_are_fast(service: Service) -> None:
    """One takes half as long as the others; nothing is served meanwhile."""
    for engine, item_ms in enumerate((1, 2, 2)):
        service.foretell(engine, item_ms, item_ms)
    for number in range(SLOTS):
        service.enter(str(number))
    queued = service.queued(URGENT)
    assert queued[0] == pytest.approx(SLOTS / 2, rel=0.2)
    assert queued[1] == pytest.approx(SLOTS / 4, rel=0.2)


def test_rows_of_one_request_stay_together(service: Service) -> None:
    """They go to one engine as a whole."""
    service.alike()
    service.enter("many", rows=30)
    assert sorted(service.queued(URGENT)) == [0, 0, 30]


def test_what_an_item_costs_while_all_share_the_work(service: Service) -> None:
    """Of engines that take 1, 2 and 2 ms it costs half a millisecond; of the last two one."""
    for engine, item_ms in enumerate((1, 2, 2)):
        service.foretell(engine, item_ms)
    assert service.engines.item_ns(0, NOW) == MS // 2
    assert service.engines.item_ns(1, NOW) == 0, "not known"
    service.engines.went(0)
    assert service.engines.item_ns(0, NOW) == MS
    service.engines.went(1)
    assert service.engines.item_ns(0, NOW) == 2 * MS


# -- the entrance -------------------------------------------------------------------------------


def test_bulk_enters_wherever_there_is_room(service: Service) -> None:
    """Two batches each, then on the accounts, one quantum each; the rest is held once."""
    service.alike()
    for number in range(50):
        service.enter(str(number), BULK)
    assert service.queued(BULK) == [2 + 10] * COUNT
    assert service.entrance.held_rows[BULK] == 50 - 36


def test_room_comes_before_an_account(service: Service) -> None:
    """The engine that would be done first has no room for it, another has; once none has, the first it is."""
    service.alike()
    service.engines.went(2)
    service.enter("urgent", URGENT, 5, engine=1)
    service.enter("bulk", BULK, 2, engine=0)
    seen = []
    for number in range(4):
        assert service.choose(MARKET) == 0
        service.enter(str(number), MARKET)
        seen.append(service.queued(MARKET)[:2])
    assert seen == [[0, 1], [0, 2], [1, 2], [2, 2]]


def test_what_is_held_goes_to_whoever_has_room_first(service: Service) -> None:
    """In the order of arrival, whichever engine its caller was promised."""
    service.alike()
    for number in range(40):
        service.enter(f"{number}", BULK)
    assert service.entrance.held_rows[BULK] == 4
    assert service.serve(2) == 12
    service.entrance.let_in(NOW)
    assert service.queued(BULK) == [12, 12, 2]
    assert service.entrance.held_rows[BULK] == 2
    assert service.serve(0) == 12
    service.entrance.let_in(NOW)
    assert service.queued(BULK) == [2, 12, 2]
    assert [service.submissions[str(number)].engine for number in range(36, 40)] == [2, 2, 0, 0]


def test_held_work_is_predicted_by_what_all_engines_do(service: Service) -> None:
    """Three share it."""
    service.alike()
    for number in range(36 + 6):
        service.enter(str(number), BULK)
    assert service.entrance.held_rows[BULK] == 6
    item_ns = service.engines.item_ns(0, NOW)
    assert service.entrance.wait_ns(BULK, item_ns) == pytest.approx(2 * MS, rel=1e-5)


# -- losses -------------------------------------------------------------------------------------


def test_a_lost_engine_takes_what_it_held_and_no_more(service: Service) -> None:
    """What it had completed has its result; what others have is answered."""
    service.alike()
    for number in range(6):
        service.enter(f"{number} on {number % COUNT}")
    service.serve(1, count=1)
    service.engines.went(1)
    service.partition.lose_engine(1)
    assert service.ended == [("1 on 1", Outcome.RESULT), ("4 on 1", Outcome.LOST)]
    service.partition.check_integrity()
    service.arena.native.reset_engine(1)
    assert service.serve(0) == service.serve(2) == 2
    service.partition.drain()
    assert Counter(outcome for _, outcome in service.ended) == {Outcome.RESULT: 5, Outcome.LOST: 1}
    assert service.partition.free_slots == SLOTS


def test_slots_of_a_lost_engine_are_used_again_at_once(service: Service) -> None:
    """By the others; the reset that follows does not touch them, nor does the engine that comes then."""
    service.alike()
    service.enter("lost", rows=SLOTS, engine=0)
    service.engines.went(0)
    service.partition.lose_engine(0)
    service.enter("next", rows=SLOTS, engine=1)
    service.arena.native.reset_engine(0)
    successor = _ring.EnginePort(service.arena.native, 0, service.fds[1], [service.fds[0]])
    assert successor.look() == []
    service.partition.lose_engine(0)
    assert service.ended == [("lost", Outcome.LOST)]
    assert service.serve(1) == SLOTS
    service.partition.drain()
    assert service.ended[1:] == [("next", Outcome.RESULT)]


def test_held_work_outlives_the_engine_it_was_meant_for(service: Service) -> None:
    """Only when none is left does it end, and then at once."""
    service.alike()
    for number in range(40):
        service.enter(str(number), BULK)
    for engine in (0, 1):
        service.engines.went(engine)
        service.partition.lose_engine(engine)
        assert len(service.ended) == 12 * (engine + 1)
        assert service.entrance.held_rows[BULK] == 4
    service.serve(2)
    service.entrance.let_in(NOW)
    assert service.queued(BULK)[2] == 2
    service.engines.went(2)
    service.entrance.lose_stranded()
    service.partition.lose_engine(2)
    assert Counter(outcome for _, outcome in service.ended) == {Outcome.LOST: 28, Outcome.RESULT: 12}
    assert service.partition.free_slots == SLOTS


def test_cancelling_reaches_whichever_engine_has_it(service: Service) -> None:
    """Held, or in the lanes of any."""
    service.alike()
    for number in range(37):
        service.enter(str(number), BULK)
    for number in (0, 1, 36):
        service.entrance.cancel(service.submissions[str(number)])
    assert service.ended == [("36", Outcome.CANCELLED)]
    for engine in range(COUNT):
        service.serve(engine)
    service.partition.drain()
    ended = dict(service.ended)
    assert {name for name, outcome in ended.items() if outcome is Outcome.CANCELLED} == {"0", "1", "36"}
    assert len(ended) == 37


@pytest.mark.parametrize("ready", [1, 2])
def test_who_came_twice_is_a_bug(ready: int) -> None:
    """It would get twice its share."""
    service = Service(ready)
    with pytest.raises(AssertionError):
        service.engines.came(ready - 1)
    service.close()


# -- when others take over ----------------------------------------------------------------------


def test_who_retires_gets_nothing_that_others_serve(service: Service) -> None:
    """And still what it alone does."""
    service.alike()
    assert service.engines.change({2: [0]}, [2]) == [0, 1]
    assert (service.ready_for(0), service.ready_for(1)) == ([2], [0, 1])
    assert [service.choose() for _ in range(4)] == [2] * 4
    service.enter("old", model=1)
    service.enter("new", model=0)
    assert service.queued(URGENT) == [1, 0, 1]


def test_who_retires_serves_on_until_a_successor_is_ready(service: Service) -> None:
    """There is somebody at every moment; but nobody who will stay, and that is told as well."""
    service.engines.went(2)
    assert service.engines.change({2: [0, 1]}, []) == [0, 1]
    assert (service.ready_for(0), service.engines.any_ready) == ([0, 1], False)
    service.engines.came(2)
    assert (service.ready_for(0), service.ready_for(1), service.engines.any_ready) == ([2], [2], True)
    service.engines.went(2)  # it died: once more those serve that are still there
    assert (service.ready_for(0), service.engines.any_ready) == ([0, 1], False)


def test_who_went_retires_no_more(service: Service) -> None:
    """It has nothing left, or it died."""
    service.engines.change({2: [0]}, [2])
    service.engines.went(0)
    assert (service.ready_for(0), service.ready_for(1)) == ([2], [1])
    service.engines.went(1)
    assert (service.ready_for(1), service.engines.any_ready) == ([], True)
    assert service.engines.change({2: [0, 1]}, [2]) == []
    assert service.ready_for(1) == [2]


def test_one_that_is_restarting_when_others_take_over_is_gone(service: Service) -> None:
    """It has nothing that it could still answer; in its chair may be a successor already."""
    service.engines.went(0)
    assert service.engines.change({0: [0, 1], 2: [0]}, [0]) == [1]
    assert (service.ready_for(0), service.ready_for(1)) == ([0], [0])
    service.engines.came(2)
    assert (service.ready_for(0), service.ready_for(1)) == ([0, 2], [0])


def test_those_that_stay_need_not_be_ready(service: Service) -> None:
    """As told by who knows: in the order of arrival of two messages one of them may have died."""
    assert service.engines.change({0: [0, 1], 1: [0, 1], 2: [0, 1]}, [1]) == []
    assert service.ready_for(0) == [1]


def test_two_changes_in_a_row(service: Service) -> None:
    """Who has retired since the first retires still, beside those of the second."""
    service.engines.went(1)
    service.engines.went(2)
    assert service.engines.change({1: [0]}, [1]) == [0]
    assert service.engines.change({2: [1]}, [2]) == [0, 1]
    # Model 0 by both of those that retire, model 1 by the new one and by no other.
    assert (service.ready_for(0), service.ready_for(1)) == ([0, 1], [2])
    service.engines.went(0)
    service.engines.went(1)
    assert (service.ready_for(0), service.ready_for(1)) == ([], [2])


def test_costs_and_predictions_are_of_those_that_serve(service: Service) -> None:
    """What retires has less and less to do, and that is nobody's concern any more."""
    for engine, item_ms in enumerate((1, 1, 4)):
        service.foretell(engine, item_ms, item_ms)
    service.engines.change({2: [0]}, [2])
    assert service.engines.item_ns(0, NOW) == 4 * MS
    assert service.engines.first_done(0, URGENT, 1, NOW) == (2, NOW + 4 * MS)


def test_what_is_held_of_a_model_that_goes_enters_where_it_is_served(service: Service) -> None:
    """As what retires has room; of a model that stays it goes to the new engine at once."""
    service.engines.went(1)
    service.engines.went(2)
    for engine in range(COUNT):
        for model in range(2):
            service.foretell(engine, 10, 10, model=model)
    for number in range(5):
        service.enter(f"staying {number}", BULK)
        service.enter(f"going {number}", BULK, model=1)
    assert (service.queued(BULK), service.entrance.held_rows[BULK]) == ([3, 0, 0], 7)
    assert service.engines.change({2: [0]}, [2]) == [0]
    assert service.entrance.holds_for(0)
    assert service.entrance.holds_for(2)
    assert not service.entrance.holds_for(1)
    ended: Counter[str] = Counter()
    for _ in range(10):
        service.now_ns += 1000 * MS
        service.entrance.let_in(service.now_ns)
        for model in range(2):
            for engine in range(COUNT):
                served = service.serve(engine, model=model)
                ended[f"model {model} at {engine}"] += served
    assert service.entrance.held_rows[BULK] == 0
    assert not any(service.entrance.holds_for(engine) for engine in range(COUNT))
    # What had entered before was with the old engine: two of the one model, and one of the other.
    assert +ended == {"model 0 at 0": 2, "model 0 at 2": 3, "model 1 at 0": 5}
    service.partition.drain()
    assert Counter(outcome for _, outcome in service.ended) == {Outcome.RESULT: 10}


def test_what_is_held_for_an_engine_that_dies_while_it_retires(service: Service) -> None:
    """Of what it alone served it is lost; the rest goes on to the new one."""
    service.engines.went(1)
    service.engines.went(2)
    for engine in range(COUNT):
        for model in range(2):
            service.foretell(engine, 1000, 1000, model=model)
    for number in range(3):
        service.enter(f"going {number}", BULK, model=1)
    for number in range(3):
        service.enter(f"staying {number}", BULK)
    assert (service.queued(BULK), service.entrance.held_rows[BULK]) == ([2, 0, 0], 4)
    service.engines.change({2: [0]}, [2])
    service.engines.went(0)
    service.entrance.lose_stranded()
    service.partition.lose_engine(0)
    assert sorted(service.ended) == [(f"going {number}", Outcome.LOST) for number in range(3)]
    assert service.entrance.held_rows[BULK] == 3
    assert not service.entrance.holds_for(0)
    service.entrance.let_in(service.now_ns)
    assert service.queued(BULK)[2] == 2
