"""An entrance with the lanes behind it, on a clock that the test turns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler import _ring
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import DEFAULT_LIMITS, ClassLimits
from tests.scheduler.world import MS, World

QUANTUM_MS = 10  # the most that an account holds


@dataclass
class Door:
    """An entrance, the lanes behind it, and how everything ended that has entered them or not."""

    world: World
    partition: Partition
    frontends: int = 1  # that share what is guaranteed
    ended: list[tuple[str, Outcome]] = field(default_factory=list)
    waits_ms: dict[str, float] = field(default_factory=dict)
    alarms: int = 0

    def __post_init__(self) -> None:
        self.engines = Engines(self.partition, [Forecasts(self.world.arena, 0)])
        self.engines.came(0)
        self.entrance = Entrance(
            self.partition,
            self.engines,
            DEFAULT_LIMITS,
            models=len(self.world.plans),
            bulk_quantum_ns=QUANTUM_MS * MS,
            frontends=self.frontends,
            on_held=self._alarm,
        )

    def _alarm(self) -> None:
        self.alarms += 1

    def enter(
        self, name: str, number: int, *, rows: int = 1, model: int = 0, timeout_ms: float | None = None
    ) -> Submission:
        """Of the class with this number."""
        now_ns = self.world.clock.now_ns()

        def ended(submission: Submission) -> None:
            self.ended.append((name, submission.outcome))
            self.waits_ms[name] = submission.queue_wait_ns / MS
            self.partition.release(submission)

        submission = self.partition.reserve(rows, model, number - 1, ended)
        self.entrance.enter(
            submission,
            engine=self.engines.first_done(model, number - 1, rows, now_ns)[0],
            now_ns=now_ns,
            arrived_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE if timeout_ms is None else now_ns + round(timeout_ms * MS),
            exclusive=False,
        )
        return submission

    def fill(self, number: int, count: int) -> list[str]:
        """So many single items of a class, one after the other."""
        names = [f"{number}-{index}" for index in range(count)]
        for name in names:
            self.enter(name, number)
        return names

    def crowd(self, number: int) -> None:
        """At 10 ms for each item: no room, and the account of this class overdrawn by 190 ms, for 3.8 s."""
        self.fill(number, 2)
        self.enter("crowd", number, rows=20)
        assert (self.queued[number - 1], self.held[number - 1]) == (22, 0)

    def change(
        self, limits: Sequence[ClassLimits], quantum_ms: float = QUANTUM_MS, *, early_refusal: bool = True
    ) -> None:
        self.entrance.change(limits, round(quantum_ms * MS), early_refusal=early_refusal)

    def let_in(self, after_ms: float = 0) -> None:
        self.world.clock.advance(round(after_ms * MS))
        self.entrance.let_in(self.world.clock.now_ns())

    def take(self, count: int) -> int:
        """Out of the lanes and answered, the smallest keys first."""
        slots = np.empty(count, np.uint32)
        now_ns = self.world.clock.now_ns()
        taken = self.world.port.take(0, now_ns, 0, slots)
        outcomes = np.full(taken, Outcome.RESULT, np.uint8)
        self.world.port.complete(slots[:taken], outcomes, now_ns, now_ns, now_ns, 1, 8)
        self.partition.drain()
        self.partition.check_integrity()
        return taken

    @property
    def queued(self) -> list[int]:
        """In the lanes, by class."""
        return self.partition.depths(0)

    @property
    def held(self) -> list[int]:
        """At the door, by class."""
        return self.entrance.held_rows


def foretell(world: World, item_ms: float, target: int = 1, *, model: int = 0) -> None:
    """What an engine publishes that takes so long for each item."""
    item_ns = round(item_ms * MS)
    batch = [target * item_ns]
    world.port.publish_forecast(model, target, item_ns, [target], batch, batch, batch)
