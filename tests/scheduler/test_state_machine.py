"""Whatever happens, in whatever order: every item ends once, rightly, and nothing is computed in vain.

One hypothesis state machine over the arena, front ends, dispatcher and CPU instances on a virtual clock, with
the supervisor's part in deaths. TICKRING_EXAMPLES=N explores N random examples instead of always the same;
`--hypothesis-seed=S` repeats such a run.
"""

import os
import sys
from collections import Counter
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scheduler import _ring
from scheduler.partition import Outcome
from scheduler.priority import ClassLimits
from tests.scheduler.model_engine import KINDS, Engine
from tests.scheduler.model_world import ENGINE, SLOTS, TICK, Frontend, ModelWorld
from tests.scheduler.plain_model import FRONTENDS, MODELS, Fault, Request, Wish

EXAMPLES = os.environ.get("TICKRING_EXAMPLES")
# It passes in seconds; a failure is made small before it is shown, and that takes minutes.
pytestmark = [pytest.mark.timeout(0 if EXAMPLES else 600), pytest.mark.slow]

MAX_WAIT_TICKS = (0, 2, 4, 8, 40)
QUEUE_LIMITS = (24, 24, 20, 16, 12)
# A run to idle takes far fewer steps.
MOST_STEPS = 1000
# What the examples come to, all together; without it, that nothing fails would say nothing.
REACHED = (
    *("row RESULT", "row ERROR", "row NON_FINITE", "row EXPIRED", "row CANCELLED", "row LOST"),
    *("held", "held EXPIRED", "held and unreachable", "held CANCELLED"),
    *("key stood still", "cancelled too late"),
    *("Overloaded", "DeadlineMissed", "early DeadlineMissed"),
    *("batch ordinary", "batch reserved", "batch spare", "of 1", "of 3", "of 4", "of 8"),
    *("bisection", "undecided", "expired in bisection"),
    *("front end died", "died in flight", "engine died"),
)

# Deaths empty the queues, so they are rare enough for something to be in them.
rarely = st.sampled_from([False] * 3 + [True])
frontends = st.integers(0, FRONTENDS - 1)
instances = st.integers(0, len(KINDS) - 1)
picks = st.integers(0, 63)
slacks = st.tuples(*[st.sampled_from([0, 1, 4, 8, 20, 100, 1000])] * _ring.CLASSES)
faults = st.sampled_from([*[Fault.NONE] * 9, Fault.NAN, Fault.GUILTY, Fault.ONCE])
# With the last, the search for the guilty rows runs out of time.
cost_factors = st.sampled_from([1, 1, 1, 0, 4, 20, 60])
wishes = st.builds(
    Wish,
    frontend=frontends,
    model=st.integers(0, MODELS - 1),
    cls=st.integers(0, _ring.CLASSES - 1),
    faults=st.lists(faults, min_size=1, max_size=4).map(tuple),
    timeout_ns=st.none() | (st.integers(-1, 40) | st.integers(50, 400)).map(lambda ticks: ticks * TICK),
    exclusive=rarely,
)


def limits_of(slack_ticks: tuple[int, ...]) -> list[ClassLimits]:
    return [
        ClassLimits(slack * TICK, max_wait * TICK, queue_limit, 1000 * TICK)
        for slack, max_wait, queue_limit in zip(slack_ticks, MAX_WAIT_TICKS, QUEUE_LIMITS, strict=True)
    ]


class ServiceMachine(RuleBasedStateMachine):
    """Everything that can happen to a request, and to who holds it."""

    seen: ClassVar[Counter[str]]  # over all examples

    def __init__(self) -> None:
        super().__init__()
        self.outer_error = sys.exception()
        self.world = ModelWorld(self.seen)
        self.clock = self.world.clock
        self.requests: list[Request] = []  # of front ends that live

    @initialize(slack_ticks=slacks, early_refusal=st.booleans(), cost_factor=st.sampled_from([1, 1, 1, 8]))
    def start(self, slack_ticks: tuple[int, ...], early_refusal: bool, cost_factor: int) -> None:
        self.limits = limits_of(slack_ticks)
        self.early_refusal = early_refusal
        self.cost_factor = cost_factor
        self.engine: Engine | None = self.new_engine()
        self.rings_are_clean = False  # of an engine that is gone
        self.frontends: list[Frontend | None] = [self.new_frontend(index) for index in range(FRONTENDS)]
        self.discards = [0] * FRONTENDS  # that the engine has not done yet

    def new_engine(self) -> Engine:
        return Engine(self.world, self.limits, early_refusal=self.early_refusal, cost_factor=self.cost_factor)

    def new_frontend(self, index: int) -> Frontend:
        return Frontend(
            self.world,
            index,
            self.limits,
            early_refusal=self.early_refusal,
            engine_lost=self.engine is None,
        )

    # Front ends.

    @rule(wanted=st.lists(wishes, min_size=1, max_size=6))
    def admit(self, wanted: list[Wish]) -> None:
        for wish in wanted:
            frontend = self.frontends[wish.frontend]
            request = frontend.submit(wish) if frontend else None
            if request is not None:
                self.requests.append(request)

    @precondition(lambda self: self.requests)
    @rule(pick=picks, count=st.integers(1, 4))
    def cancel(self, pick: int, count: int) -> None:
        """The newest are likelier to be queued; one that has ended is not minded."""
        for request in self.requests[::-1][pick % len(self.requests) :][:count]:
            frontend = self.frontends[request.frontend]
            assert frontend is not None
            frontend.cancel(request)

    @rule(index=frontends)
    def drain(self, index: int) -> None:
        if (frontend := self.frontends[index]) is not None:
            frontend.drain()

    @rule(index=frontends)
    def let_in(self, index: int) -> None:
        if (frontend := self.frontends[index]) is not None:
            frontend.let_in()

    # Time and settings.

    @rule(ticks=st.integers(1, 8) | st.sampled_from([40, 200, 4000]))
    def time_passes(self, ticks: int) -> None:
        self.clock.advance(ticks * TICK)

    @rule(
        slack_ticks=slacks,
        told=st.sets(st.integers(0, FRONTENDS), min_size=1),
        steps_down=st.integers(0, 3),
        quantum_ticks=st.sampled_from([1, 3, 3, 3, 12]),
        early_refusal=st.booleans(),
    )
    def change_settings(
        self,
        slack_ticks: tuple[int, ...],
        told: set[int],
        steps_down: int,
        quantum_ticks: int,
        early_refusal: bool,
    ) -> None:
        """Each process hears of it when it does; the last number is the engine, and that of pressure too."""
        self.limits = limits_of(slack_ticks)
        self.early_refusal = early_refusal
        for index, frontend in enumerate(self.frontends):
            if frontend is not None and index in told:
                frontend.change(self.limits, quantum_ticks * TICK, early_refusal=early_refusal)
        if self.engine is not None and FRONTENDS in told:
            self.engine.change(self.limits, steps_down, early_refusal=early_refusal)

    # The engine.

    @precondition(lambda self: self.engine and not all(self.engine.running))
    @rule(at=instances)
    def ask(self, at: int) -> None:
        assert self.engine is not None
        idle = [index for index, run in enumerate(self.engine.running) if run is None]
        self.engine.ask(idle[at % len(idle)])

    @precondition(lambda self: self.engine and any(self.engine.running))
    @rule(at=instances, cost_factor=cost_factors)
    def finish(self, at: int, cost_factor: int) -> None:
        assert self.engine is not None
        assert self.engine.finish(self.busy(at), cost_factor=cost_factor)

    @precondition(lambda self: self.engine)
    @rule(
        wanted=st.lists(wishes, max_size=4),
        turns=st.lists(instances, min_size=2, max_size=12),
        cost_factor=cost_factors,
    )
    def work(self, wanted: list[Wish], turns: list[int], cost_factor: int) -> None:
        """So that much comes and goes, and rings turn over."""
        self.admit(wanted)
        assert self.engine is not None
        for at in turns:
            if self.engine.running[at] is None:
                self.engine.ask(at)
            else:
                self.engine.finish(at, cost_factor=cost_factor)
        for index in range(FRONTENDS):
            self.drain(index)
            self.let_in(index)

    def busy(self, at: int, *, raising: bool = False) -> int:
        """An instance that runs a batch; one that will raise, if that is wanted and there is one."""
        assert self.engine is not None
        running = [index for index, run in enumerate(self.engine.running) if run is not None]
        raisers = [index for index in running if raising and self.engine.will_raise(index)]
        return (raisers or running)[at % len(raisers or running)]

    # Deaths, as the supervisor handles them.

    @rule(index=frontends, dies=rarely)
    def frontend_dies(self, index: int, dies: bool) -> None:
        if not dies or self.frontends[index] is None:
            return
        self.seen["front end died"] += 1
        self.seen["died in flight"] += self.engine is not None and self.engine.in_flight(index)
        self.frontends[index] = None
        self.requests = [request for request in self.requests if request.frontend != index]
        if self.engine is None:
            self.reset_engine_if_free()
            self.reset_frontend(index)
        else:
            self.discards[index] = 1
            self.engine.dispatcher.discard(index, partial(self.discarded, index))

    @precondition(lambda self: self.engine)
    @rule(at=instances, calls=st.sampled_from([None, 0, 0, 1, 1, 2]), dies=rarely)
    def engine_dies(self, at: int, calls: int | None, dies: bool) -> None:
        """Between batches, or because the device is lost in some call of a runner, if it comes to that."""
        assert self.engine is not None
        if not dies:
            return
        if calls is not None and any(self.engine.running):
            if self.engine.finish(self.busy(at, raising=calls > 0), device_lasts=calls):
                return
            self.seen["device lost in bisection" if calls else "device lost"] += 1
        self.seen["engine died"] += 1
        self.engine = None
        for index in range(FRONTENDS):
            if self.discards[index]:
                self.discards[index] = 0
                self.reset_frontend(index)
        for frontend in self.frontends:
            if frontend is not None:
                frontend.acknowledged = False
        self.reset_engine_if_free()

    @precondition(lambda self: self.engine is None or None in self.frontends)
    @rule(index=frontends, steps=st.integers(1, 4), early_refusal=st.booleans())
    def supervisor_goes_on(self, index: int, steps: int, early_refusal: bool) -> None:
        """Step by step: front ends hear of a loss, then the rings are reset, then who is gone comes back."""
        for _ in range(steps):
            deaf = [f for f in self.frontends if f is not None and not f.acknowledged]
            if deaf:
                deaf[index % len(deaf)].lose_engine()
                self.reset_engine_if_free()
            elif self.frontends[index] is None and not self.discards[index]:
                self.frontends[index] = self.new_frontend(index)
            elif self.engine is None:
                self.early_refusal = early_refusal
                self.engine = self.new_engine()
                self.rings_are_clean = False
                for frontend in self.frontends:
                    if frontend is not None:
                        frontend.engine_ready()

    def discarded(self, index: int) -> None:
        """The engine's answer, once: nothing of that front end is queued or in a batch."""
        assert self.engine is not None
        assert self.discards[index] == 1
        assert not self.engine.in_flight(index)
        self.discards[index] = 0
        self.reset_frontend(index)

    def reset_frontend(self, index: int) -> None:
        dropped = self.world.queues.drop(index)
        assert self.engine is None or dropped == 0
        self.world.books.ended[index][Outcome.LOST] += self.world.books.open(index)
        self.world.epochs[index] += 1
        self.world.arena.native.reset_frontend(index)

    def reset_engine_if_free(self) -> None:
        if self.engine is not None or self.rings_are_clean:
            return
        if any(frontend is not None and not frontend.acknowledged for frontend in self.frontends):
            return
        self.world.queues.drop()
        self.world.books.engine["lost"] += self.world.books.in_batches()
        self.world.arena.native.reset_engine(ENGINE)
        self.rings_are_clean = True

    # What always holds.

    @invariant()
    def everything_adds_up(self) -> None:
        self.seen["steps"] += 1
        self.world.check()
        for frontend in self.frontends:
            if frontend is not None:
                frontend.check()
        if self.engine is not None:
            self.engine.check()

    def teardown(self) -> None:
        # A step that failed leaves nothing that could be checked, and would be hidden by what it caused.
        if sys.exception() is self.outer_error and hasattr(self, "discards"):
            self.run_to_idle()
        self.world.close()

    def recover(self) -> None:
        """Brings back everybody whose place is free."""
        for index in range(FRONTENDS):
            self.supervisor_goes_on(index, 4, self.early_refusal)

    def run_to_idle(self) -> None:
        """Whatever is left ends, and everything is free then."""
        self.recover()
        assert self.engine is not None
        for _ in range(MOST_STEPS):
            self.work([], list(range(len(KINDS))), 1)
            if any(self.engine.running):
                continue
            sleep_ns = self.engine.ask(0) or 0
            if sleep_ns < _ring.NO_DEADLINE:
                self.clock.advance(sleep_ns)
            elif not any(frontend.open for frontend in self.frontends if frontend is not None):
                break
        else:
            raise AssertionError("it never comes to rest")
        self.recover()
        self.world.check()
        assert self.world.queues.rows() == []
        assert self.world.books.in_batches() == 0
        for index, frontend in enumerate(self.frontends):
            assert frontend is not None
            frontend.check()
            assert frontend.partition.free_slots == SLOTS
            assert self.world.books.open(index) == 0
        assert all(request.ended is not None for request in self.requests)


def test_every_item_ends_once_whatever_happens() -> None:
    """And the examples, together, have come to everything in `REACHED`."""
    seen = ServiceMachine.seen = Counter[str]()
    run_state_machine_as_test(
        ServiceMachine,
        settings=settings(
            max_examples=int(EXAMPLES or 600),
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(sorted(seen.items())))
    assert [name for name in REACHED if not seen[name]] == []
