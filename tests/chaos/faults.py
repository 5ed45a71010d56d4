"""The faults: what is done to the server, what calls may then end with, and whom it costs a restart."""

import random
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from tests.chaos import bursts, mix
from tests.chaos.world import World

# SIGSTOP to SIGCONT, more often short than long; well below the stall timeout.
PAUSE_S = (0.05, 0.8)
# Time for more calls than one engine is given.
PILE_UP_S = 0.5
# Time to send more than the slots hold.
OVERLOAD_S = 0.4
# What a caller may be told while a process is gone. A connection that breaks has no reason to tell.
GONE = bursts.CUT_OFF
# While calls pile up, some may find no room.
PILED_UP = bursts.FULL

# Faults act on the world; a burst's account is entered into the one given.
Act = Callable[[World, random.Random, mix.Account], None]


@dataclass(frozen=True)
class Fault:
    """One of the things that go wrong.

    Attributes:
        weight: how often it is drawn.
        allowed: what steady calls may end with beside OK.
        restarts: the child that is restarted by it.
    """

    name: str
    weight: int
    act: Act
    allowed: Set[str] = frozenset()
    restarts: str | None = None


def _kill(child: str) -> Act:
    return lambda world, rng, account: world.kill(child)


def _stop_for_good(world: World, rng: random.Random, account: mix.Account) -> None:
    first, *others = world.engines
    # Meanwhile calls pile up, so the stopped one gets some too: one without work would not be missed.
    with world.paused(*others):
        world.stop_for_good(first)
        if others:
            time.sleep(PILE_UP_S)


def _pause_s(rng: random.Random) -> float:
    shortest, longest = PAUSE_S
    return float(shortest * (longest / shortest) ** rng.random())


def _pause_engine(world: World, rng: random.Random, account: mix.Account) -> None:
    with world.paused(rng.choice(world.engines)):
        time.sleep(_pause_s(rng))


def _pause_frontend(world: World, rng: random.Random, account: mix.Account) -> None:
    with world.paused(rng.choice([name for name in world.children() if name.startswith("frontend")])):
        time.sleep(_pause_s(rng))


def _burst(kind: str) -> Act:
    """A burst, half of the time met by engines that stand still, so that all of it is queued."""

    def act(world: World, rng: random.Random, account: mix.Account) -> None:
        if rng.random() < 0.5:
            _into_queue(kind, _pause_s(rng) / 2)(world, rng, account)
        else:
            account.add(mix.Account.from_message(world.command("burst", kind=kind)))

    return act


def _into_queue(kind: str, pause_s: float) -> Act:
    """A burst that begins while no engine moves."""

    def act(world: World, rng: random.Random, account: mix.Account) -> None:
        with world.paused(*world.engines):
            world.begin("burst", kind=kind)
            time.sleep(pause_s)
        account.add(mix.Account.from_message(world.answer()))

    return act


# Only the first front end and the first engine are ever killed: the others live as long as the campaign, so
# that their memory can be compared. Kills of the engine are rare because each costs the seconds of a start.
FAULTS = (
    Fault("kill engine", 2, _kill("engine-0"), GONE | PILED_UP, restarts="engine-0"),
    Fault("stop engine for good", 1, _stop_for_good, GONE | PILED_UP, restarts="engine-0"),
    Fault("kill front end", 5, _kill("frontend-0"), GONE, restarts="frontend-0"),
    Fault("pause engine", 14, _pause_engine, PILED_UP),
    Fault("pause front end", 14, _pause_frontend, PILED_UP),
    Fault("poison rows", 16, _burst("poison"), PILED_UP),
    Fault("cancel 200 calls", 14, _burst("cancel"), PILED_UP),
    Fault("close RPC streams", 8, _burst("close_streams"), PILED_UP),
    Fault("drop a connection", 8, _burst("drop_connection"), PILED_UP),
    Fault("expiry", 10, _burst("expire"), PILED_UP),
    Fault("overload", 8, _into_queue("overload", OVERLOAD_S), PILED_UP),
)
