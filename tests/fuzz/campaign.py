"""Mutated messages and raw connections, mixed, against a server that goes on serving a good caller."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.fuzz import raw
from tests.fuzz.corpus import rpcs
from tests.fuzz.sending import Account, Sender, draw
from tests.fuzz.world import MAX_MESSAGE_BYTES, World

CALLS_AT_ONCE = 64
RAW_AT_ONCE = 24
# Parts of the campaign after which memory is measured.
WARM, MIDDLE = 0.25, 0.625
# Memory may grow by so much between the measurement after the warm-up and the last one. A front end takes up
# to 100 MB once for headers without an end, of which the warm-up may not have seen the worst, and the
# allocator gives back late. Losing one message in ten, or 50 kB with every connection, would be more.
GROWTH_BYTES = {"frontend-0": 100_000_000, "engine-0": 40_000_000, "supervisor": 20_000_000}
# A shorter campaign has no warm-up to speak of.
MIN_MESSAGES_FOR_MEMORY = 20_000


@dataclass
class Report:
    """A campaign. Whatever is wrong is in `problems`."""

    seed: int
    account: Account = field(default_factory=Account)
    peers: raw.Peers = field(default_factory=raw.Peers)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)  # bytes by process, by when
    witness: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def codes(self) -> Counter[str]:
        """How messages ended, all RPCs."""
        codes: Counter[str] = Counter()
        for (_, end), count in self.account.ends.items():
            codes[end] += count
        return codes


@dataclass(frozen=True)
class Order:
    """What a campaign is to do: this many messages from call `first` on, and raw connections in between."""

    messages: int
    connections: int
    seed: int
    first: int = 0
    seconds_limit: float = float("inf")


Progress = Callable[[Report], None]


def run(world: World, order: Order, progress: Progress = lambda _: None) -> Report:
    """Runs it to its end, or to its limit; goes on after a problem, so that one run shows all of them."""
    report = Report(order.seed)
    asyncio.run(_attack(world, order, report, progress))
    report.witness = world.dismiss_witness()
    report.problems += report.account.problems + report.peers.problems
    report.problems += [str(problem) for problem in report.witness["problems"]]  # type: ignore[attr-defined]
    report.problems += world.problems()
    report.memory["end"] = world.memory_bytes()
    report.problems += _grown(report) if report.account.messages >= MIN_MESSAGES_FOR_MEMORY else []
    report.problems += world.stop()
    return report


async def _attack(world: World, order: Order, report: Report, progress: Progress) -> None:
    account, peers, target = report.account, report.peers, world.target
    sender = Sender(target, account)
    calls_free, raw_free = asyncio.Semaphore(CALLS_AT_ONCE), asyncio.Semaphore(RAW_AT_ONCE)
    scripts = draw_scripts(order.seed)
    started_s = time.monotonic()
    begun = connections = 0

    async def finish(work: object, free: asyncio.Semaphore) -> None:
        try:
            await work  # type: ignore[misc]
        finally:
            free.release()

    async with asyncio.TaskGroup() as tasks:
        for plan in draw(rpcs(), order.seed, order.first, order.messages, MAX_MESSAGE_BYTES):
            await calls_free.acquire()
            tasks.create_task(finish(sender.send(plan), calls_free))
            begun += len(plan.messages)
            while connections < order.connections * begun // order.messages:
                await raw_free.acquire()
                work = raw.run(target, next(scripts), order.seed, connections, peers)
                tasks.create_task(finish(work, raw_free))
                connections += 1
            for name, part in (("warm", WARM), ("middle", MIDDLE)):
                if name not in report.memory and begun >= part * order.messages:
                    report.memory[name] = world.memory_bytes()
            report.seconds = time.monotonic() - started_s
            progress(report)
            if report.seconds > order.seconds_limit:
                break
    await sender.close()
    report.seconds = time.monotonic() - started_s


def draw_scripts(seed: int) -> Iterator[str]:
    """Names of scripts: all of them in some order, and again."""
    rng = random.Random(f"{seed}/scripts")
    while True:
        names = sorted(raw.SCRIPTS)
        rng.shuffle(names)
        yield from names


def _grown(report: Report) -> list[str]:
    return [
        f"{name} grew from {before / 1e6:.0f} to {report.memory['end'][name] / 1e6:.0f} MB"
        for name, before in report.memory.get("warm", {}).items()
        if report.memory["end"][name] - before > GROWTH_BYTES[name]
    ]
