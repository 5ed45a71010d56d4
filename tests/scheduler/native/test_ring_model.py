"""The ports against a plain model of them: any sequence of operations, exact order and outcomes."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler import _ring
from tests.scheduler.native.native_world import (
    ALL_CLASSES,
    CANCELLED,
    ENGINE,
    EXPIRED,
    LOST,
    RESULT,
    NativeWorld,
    is_readable,
)

# It passes in seconds; a failure is made small before it is shown, and that takes minutes.
pytestmark = pytest.mark.timeout(400)

FRONTENDS = 2
MODELS = 2
SLOTS = 6  # rings of 8: full and wrapped around within a few steps
# Small next to the steps of the clock, so that equal keys are common.
SLACK_NS = (0, 1, 2, 4, 8)

frontends = st.integers(0, FRONTENDS - 1)
models = st.integers(0, MODELS - 1)
classes = st.integers(0, _ring.CLASSES - 1)
picks = st.integers(0, FRONTENDS * SLOTS - 1)
# Deaths empty the rings, so they are rare enough for something to be in them.
rarely = st.sampled_from([False, False, False, True])


@dataclass(frozen=True)
class Submission:
    """One request to push; fewer rows when slots are short."""

    frontend: int
    model: int
    cls: int
    rows: int
    timeout_ns: int | None
    exclusive: bool
    pause_ns: int


submissions = st.builds(
    Submission,
    frontend=frontends,
    model=models,
    cls=classes,
    rows=st.integers(1, 4),
    timeout_ns=st.none() | st.integers(0, 20),
    exclusive=rarely,
    pause_ns=st.integers(0, 2),
)


@dataclass
class Item:
    """A slot between its push and its end."""

    slot: int
    key: int
    enqueued_ns: int
    deadline_ns: int
    request: tuple[int, int]
    exclusive: bool
    cancelled: bool = False


def may_share_a_batch(a: Item, b: Item) -> bool:
    """An exclusive item is alone with its request."""
    return not (a.exclusive or b.exclusive) or (a.exclusive and b.exclusive and a.request == b.request)


@dataclass
class Ended:
    """What a front end is to drain; the fields in the order of `FrontendPort.drain`."""

    slot: int
    outcome: int
    enqueued_ns: int
    dispatched_ns: int
    compute_start_ns: int
    compute_end_ns: int
    batch: int
    batch_size: int
    bucket: int


@dataclass
class FrontendModel:
    """One front end: which slots are its own, what awaits it, and its gate."""

    free: list[int]
    ended: list[Ended] = field(default_factory=list)
    last_request: int = 0
    epoch: int = 0
    asleep: bool = False
    signalled: bool = False
    admitted: int = 0
    outcomes: list[int] = field(default_factory=lambda: [0] * (LOST + 1))
    drained: int = 0

    @property
    def open(self) -> int:
        """Items admitted and not ended."""
        return self.admitted - sum(self.outcomes)

    def deliver(self, ended: list[Ended]) -> None:
        """One flush of the engine."""
        self.ended += ended
        self.signalled |= bool(ended) and self.asleep


class RingMachine(RuleBasedStateMachine):
    """Runs every operation on the ports and on the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.world = NativeWorld(FRONTENDS, MODELS, SLOTS)
        self.now_ns = 100
        self.frontends = [FrontendModel(self.world.partition(index)) for index in range(FRONTENDS)]
        self.lanes: dict[tuple[int, int, int], list[Item]] = {
            (model, cls, frontend): []
            for model in range(MODELS)
            for cls in range(_ring.CLASSES)
            for frontend in range(FRONTENDS)
        }
        self.in_flight: list[Item] = []
        self.pushes = 0
        self.seen_pushes = 0
        self.engine_signalled = False
        self.counts = Counter[str]()
        self.outcomes = [0] * (CANCELLED + 1)
        self.item_ns = [0] * MODELS

    def teardown(self) -> None:
        self.world.close()

    # What the front ends do.

    @rule(step=st.integers(1, 10))
    def time_passes(self, step: int) -> None:
        self.now_ns += step

    @rule(submissions=st.lists(submissions, min_size=1, max_size=4))
    def push(self, submissions: list[Submission]) -> None:
        for submission in submissions:
            own = self.frontends[submission.frontend]
            slots, own.free = own.free[: submission.rows], own.free[submission.rows :]
            own.last_request = (own.last_request + 1) % 2  # both front ends often use the same number
            deadline_ns = _ring.NO_DEADLINE
            if submission.timeout_ns is not None:
                deadline_ns = self.now_ns + submission.timeout_ns
            key = self.now_ns + SLACK_NS[submission.cls]
            assert self.world.ports[submission.frontend].push(
                ENGINE,
                submission.model,
                submission.cls,
                slots,
                key,
                self.now_ns,
                deadline_ns,
                own.last_request,
                submission.exclusive,
            )
            self.pushes += 1
            own.admitted += len(slots)
            request = (submission.frontend, own.last_request)
            self.lanes[submission.model, submission.cls, submission.frontend] += [
                Item(slot, key, self.now_ns, deadline_ns, request, submission.exclusive) for slot in slots
            ]
            self.now_ns += submission.pause_ns

    @precondition(lambda self: self.held())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        held = self.held()
        item = held[pick % len(held)]
        self.world.ports[item.request[0]].cancel(item.slot)
        item.cancelled = True

    @rule(frontend=frontends)
    def drain(self, frontend: int) -> None:
        own = self.frontends[frontend]
        expected = [tuple(vars(ended).values()) for ended in own.ended]
        assert self.world.ports[frontend].drain() == expected
        own.free += [ended.slot for ended in own.ended]
        for ended in own.ended:
            own.outcomes[ended.outcome] += 1
        own.drained += len(own.ended)
        own.ended = []

    @rule(frontend=frontends)
    def arm(self, frontend: int) -> None:
        own = self.frontends[frontend]
        own.asleep = not own.ended
        assert self.world.ports[frontend].arm() == own.asleep

    @rule(frontend=frontends)
    def wake_up(self, frontend: int) -> None:
        own = self.frontends[frontend]
        self.world.ports[frontend].woken()
        own.asleep = own.signalled = False

    # What the engine does.

    @rule()
    def look(self) -> None:
        expected = []
        for model in range(MODELS):
            for cls in range(_ring.CLASSES):
                lanes = [self.lanes[model, cls, frontend] for frontend in range(FRONTENDS)]
                heads = [lane[0] for lane in lanes if lane]
                if not heads:
                    continue
                deadline_ns = min(head.deadline_ns for head in heads)
                expected.append(
                    (
                        model,
                        cls,
                        sum(map(len, lanes)),
                        min(head.key for head in heads),
                        min(head.enqueued_ns for head in heads),
                        None if deadline_ns == _ring.NO_DEADLINE else deadline_ns,
                    )
                )
        assert self.world.engine.look() == expected
        self.seen_pushes = self.pushes

    @rule(
        model=models,
        count=st.integers(0, 12),
        expected_ns=st.sampled_from([0, 0, 5]),
        classes=st.just(ALL_CLASSES) | st.integers(0, ALL_CLASSES),
    )
    def take(self, model: int, count: int, expected_ns: int, classes: int = ALL_CLASSES) -> None:
        batch: list[Item] = []
        unserved: list[list[Ended]] = [[] for _ in range(FRONTENDS)]
        while len(batch) < count:
            heads = {
                where: lane[0]
                for where, lane in self.lanes.items()
                if lane and where[0] == model and classes >> where[1] & 1
            }
            if not heads:
                break
            where = min(heads, key=lambda where: (heads[where].key, *where))
            item = heads[where]
            outcome = None
            if item.cancelled:
                outcome = CANCELLED
            elif item.deadline_ns < self.now_ns + expected_ns:
                outcome = EXPIRED
            elif batch and not may_share_a_batch(batch[0], item):
                break
            del self.lanes[where][0]
            if outcome is None:
                batch.append(item)
            else:
                times = (item.enqueued_ns, self.now_ns, self.now_ns, self.now_ns)
                unserved[item.request[0]].append(Ended(item.slot, outcome, *times, 0, 0, 0))
                self.outcomes[outcome] += 1
        taken = self.world.take(count, model, self.now_ns, expected_ns, classes)
        assert taken == [item.slot for item in batch]
        self.in_flight += batch
        self.counts["taken"] += len(batch)
        for own, ended in zip(self.frontends, unserved, strict=True):
            own.deliver(ended)

    @precondition(lambda self: self.in_flight)
    @rule(
        first=picks,
        count=st.integers(1, 8),
        outcome=st.integers(RESULT, CANCELLED),
        bucket=st.integers(1, 64),
        took_ns=st.integers(0, 9),
    )
    def complete(self, first: int, count: int, outcome: int, bucket: int, took_ns: int) -> None:
        first %= len(self.in_flight)
        items = self.in_flight[first : first + count]
        del self.in_flight[first : first + count]
        self.hand_back(items, outcome, bucket, took_ns)

    @rule(count=st.integers(1, 5))
    def serve_everything(self, count: int) -> None:
        """So that slots come back, and the rings turn over more than once."""
        for model in range(MODELS):
            while self.queued(model):
                self.take(model, count, 0)
        if self.in_flight:
            self.complete(0, len(self.in_flight), RESULT, count, 0)
        for frontend in range(FRONTENDS):
            self.drain(frontend)

    @rule(model=models, item_ns=st.integers(0, 1000))
    def forecast(self, model: int, item_ns: int) -> None:
        self.item_ns[model] = item_ns
        self.world.engine.publish_forecast(model, 1, item_ns, [], [], [], [])

    @rule()
    def wait_without_patience(self) -> None:
        expected = self.pushes != self.seen_pushes
        assert self.world.engine.wait(0, 0) == expected
        if not expected:
            self.counts["sleeps"] += 1
            self.engine_signalled = False

    @rule()
    def wake_engine(self) -> None:
        self.world.engine.wake()
        self.engine_signalled = True

    # What becomes of an end that died.

    @rule(frontend=frontends, dies=rarely)
    def replace_frontend(self, frontend: int, dies: bool) -> None:
        """Its batches end first: a slot in one would come back to the next front end."""
        if not dies:
            return
        running = [item for item in self.in_flight if item.request[0] == frontend]
        self.in_flight = [item for item in self.in_flight if item.request[0] != frontend]
        if running:
            self.hand_back(running, RESULT, 1, 1)
        dropped = 0
        for where, lane in self.lanes.items():
            if where[2] == frontend:
                dropped += len(lane)
                lane.clear()
        assert self.world.engine.discard(frontend) == dropped
        self.counts["discarded"] += dropped
        self.world.arena.reset_frontend(frontend)
        self.world.ports[frontend] = self.world.new_frontend(frontend)
        old = self.frontends[frontend]
        old.outcomes[LOST] += old.open
        self.frontends[frontend] = FrontendModel(
            self.world.partition(frontend),
            epoch=old.epoch + 1,
            signalled=old.signalled,
            admitted=old.admitted,
            outcomes=old.outcomes,
            drained=old.drained + len(old.ended),
        )

    @rule(dies=rarely, drained=st.booleans())
    def replace_engine(self, dies: bool, drained: bool) -> None:
        """The front ends stay, with what their ports remember of the rings, and end what is open."""
        if not dies:
            return
        for frontend, own in enumerate(self.frontends):
            if drained:
                self.drain(frontend)
            self.world.ports[frontend].lose(own.open)
            own.outcomes[LOST] += own.open
        self.world.arena.reset_engine(ENGINE)
        self.counts["lost"] += len(self.in_flight)
        self.world.engine = self.world.new_engine()
        self.seen_pushes = 0
        self.in_flight = []
        for lane in self.lanes.values():
            lane.clear()
        for index, own in enumerate(self.frontends):
            own.free = self.world.partition(index)
            own.drained += len(own.ended)  # a reset moves the position over what nobody took back
            own.ended = []

    @invariant()
    def signals_agree(self) -> None:
        for own, fd in zip(self.frontends, self.world.frontend_fds, strict=True):
            assert is_readable(fd) == own.signalled
        assert is_readable(self.world.engine_fd) == self.engine_signalled

    @invariant()
    def counters_agree(self) -> None:
        counters = ("taken", "completed", "lost", "discarded", "batches", "corrupt", "sleeps")
        expected = {name: self.counts[name] for name in counters} | {"ended": self.outcomes}
        assert self.world.arena.engine_stats(ENGINE) == expected
        for index, own in enumerate(self.frontends):
            assert self.world.arena.epoch(index) == own.epoch
            books = {"admitted": own.admitted, "ended": own.outcomes, "corrupt": 0}
            assert self.world.arena.frontend_stats(index) == books
            assert self.world.arena.frontend_progress(index) == (len(own.ended), own.drained)

    @invariant()
    def backlogs_agree(self) -> None:
        depths, backlog_ns = [0] * _ring.CLASSES, [0] * _ring.CLASSES
        for (model, cls, _), lane in self.lanes.items():
            depths[cls] += len(lane)
            backlog_ns[cls] += len(lane) * self.item_ns[model]
        for port in self.world.ports:
            assert port.depths(ENGINE) == depths
            assert port.backlog_ns(ENGINE) == backlog_ns
        waiting, _ = self.world.arena.engine_progress(ENGINE)
        assert waiting == sum(depths) + len(self.in_flight)

    def queued(self, model: int) -> int:
        """Items in the lanes of a model."""
        return sum(len(lane) for where, lane in self.lanes.items() if where[0] == model)

    def held(self) -> list[Item]:
        """Items that an engine has or will get."""
        return [item for lane in self.lanes.values() for item in lane] + self.in_flight

    def hand_back(self, items: list[Item], outcome: int, bucket: int, took_ns: int) -> None:
        """Completes items in one call, with the times and sizes that their front ends are to see."""
        batch = len(items) + self.now_ns
        end_ns = self.now_ns + took_ns
        self.world.engine.complete(
            np.array([item.slot for item in items], np.uint32),
            np.full(len(items), outcome, np.uint8),
            self.now_ns - 1,
            self.now_ns,
            end_ns,
            batch,
            bucket,
        )
        self.counts["batches"] += 1
        self.counts["completed"] += len(items)
        self.outcomes[outcome] += len(items)
        facts = (self.now_ns - 1, self.now_ns, end_ns, batch, len(items), bucket)
        for frontend, own in enumerate(self.frontends):
            own.deliver(
                [
                    Ended(item.slot, outcome, item.enqueued_ns, *facts)
                    for item in items
                    if item.request[0] == frontend
                ]
            )


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(
    max_examples=800, stateful_step_count=60, derandomize=True, deadline=None, database=None
)
