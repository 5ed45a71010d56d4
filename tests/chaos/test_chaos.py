"""A short campaign of random faults. `python -m tests.chaos` runs a thousand rounds."""

from pathlib import Path

import pytest

from tests.chaos.campaign import run
from tests.chaos.faults import FAULTS
from tests.chaos.mix import CANCELLED_HERE, HANG, OK
from tests.chaos.world import World

ROUNDS = 25
SEED = 20260101


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_hangs_whatever_fails(tmp_path: Path) -> None:
    """Every call ends in time with an honest status, answers are right, the books add up after each round."""
    with World(tmp_path, SEED) as world:
        report = run(world, ROUNDS, SEED)
    assert report.problems == []
    assert report.rounds == ROUNDS
    assert set(report.tallies) == {fault.name for fault in FAULTS}
    # Each fault did what its name says.
    seen = {name: tally.account.statuses for name, tally in report.tallies.items()}
    assert all(statuses[OK] > 0 for statuses in seen.values()), seen
    assert HANG not in report.statuses
    assert seen["cancel 200 calls"][CANCELLED_HERE] > 0
    assert seen["close RPC streams"][CANCELLED_HERE] > 0
    assert seen["poison rows"]["INTERNAL MODEL_ERROR"] > 0
    assert seen["poison rows"]["INTERNAL NON_FINITE_OUTPUT"] > 0
    assert seen["overload"]["RESOURCE_EXHAUSTED QUEUE_FULL"] > 0
    for name in ("kill engine", "stop engine for good", "drop a connection"):
        assert any(status.startswith("UNAVAILABLE") for status in seen[name]), (name, seen[name])
    assert any(status.startswith("DEADLINE_EXCEEDED") for status in seen["expiry"]), seen["expiry"]
