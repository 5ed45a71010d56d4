"""A push reaches an engine that sleeps."""

from bench.conftest import Gate
from bench.wake_up import wake_up_us

ROUNDS = 3


def test_wake_up(gate: Gate) -> None:
    """One in a hundred: a wake-up that is lost is as late as the next look."""
    gate.check("wake_up", *(wake_up_us(0.99) for _ in range(ROUNDS)))
