"""Rounds of random faults under load, and what came of them."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos import books, mix
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.world import World

# The steady calls run for about this long before a fault.
LEAD_S = (0.02, 0.1)
# Until every process serves again.
READY_S = 40.0
POLL_S = 0.01
# Memory may grow by the larger of these between the second tenth and the last tenth of the rounds.
GROWTH_BYTES = 10 << 20
GROWTH_PART = 0.05
# With fewer rounds a tenth says nothing.
MIN_ROUNDS_FOR_MEMORY = 100


@dataclass
class Tally:
    """All rounds of one fault."""

    rounds: int = 0
    account: mix.Account = field(default_factory=mix.Account)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Report:
    """A campaign. Whatever is wrong is in `problems`, with the round in which it was found."""

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)  # bytes after each round, by process
    problems: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Rounds run."""
        return sum(tally.rounds for tally in self.tallies.values())

    @property
    def statuses(self) -> Counter[str]:
        """How calls ended, all rounds."""
        return sum((tally.account.statuses for tally in self.tallies.values()), Counter[str]())


def run(
    world: World, rounds: int, seed: int, progress: Callable[[int, str, float], None] = lambda *_: None
) -> Report:
    """Runs the rounds; goes on after a problem, so that one run shows all of them."""
    report = Report(seed)
    rng = random.Random(seed)
    for number, fault in enumerate(draw(rng, rounds), 1):
        started_s = time.monotonic()
        account = mix.Account()
        problems = _round(world, fault, rng, account)
        tally = report.tallies.setdefault(fault.name, Tally())
        tally.rounds += 1
        tally.account.add(account)
        tally.seconds.append(time.monotonic() - started_s)
        report.problems += [f"round {number}, {fault.name}: {problem}" for problem in problems]
        for name, size in world.memory_bytes().items():
            report.memory.setdefault(name, []).append(size)
        progress(number, fault.name, tally.seconds[-1])
    if report.rounds >= MIN_ROUNDS_FOR_MEMORY:
        report.problems += [
            f"{name} grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB"
            for name, sizes in report.memory.items()
            for before, after in [tenths(sizes)]
            if after > before + max(GROWTH_BYTES, GROWTH_PART * before)
        ]
    return report


def draw(rng: random.Random, rounds: int) -> Iterator[Fault]:
    """Each fault once, in any order, then by weight."""
    first = list(FAULTS)
    rng.shuffle(first)
    yield from first[:rounds]
    for _ in range(rounds - len(first)):
        yield rng.choices(FAULTS, [fault.weight for fault in FAULTS])[0]


def tenths(sizes: Sequence[int]) -> tuple[float, float]:
    """The medians of the second and of the last tenth."""
    tenth = len(sizes) // 10
    return statistics.median(sizes[tenth : 2 * tenth]), statistics.median(sizes[-tenth:])


def _round(world: World, fault: Fault, rng: random.Random, account: mix.Account) -> list[str]:
    before = books.read(world)["restarts"]
    world.command("start", allowed=sorted(fault.allowed))
    time.sleep(rng.uniform(*LEAD_S))
    fault.act(world, rng, account)
    problems = []
    if fault.restarts is not None:
        before[fault.restarts] += 1
        problems += _until(lambda: books.read(world)["restarts"] == before, "restarted")
    problems += _until(world.ready, "ready")
    world.command("recover")
    account.add(mix.Account.from_message(world.command("stop")))
    problems += account.problems
    problems += books.settled(world)
    after = books.read(world)["restarts"]
    if after != before:
        problems.append(f"restarts are {after}, expected {before}")
    return problems


def _until(condition: Callable[[], bool], what: str) -> list[str]:
    """Waits for what has no event to await; a problem when it does not come."""
    deadline = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > deadline:
            return [f"not {what} within {READY_S:g} s"]
        time.sleep(POLL_S)
    return []
