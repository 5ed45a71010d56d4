"""How readings of host and device become steps."""

import pytest

from scheduler.pressure import Pressure, Threshold

HIGH, BETWEEN, LOW = 0.9, 0.8, 0.7


@pytest.fixture
def pressure() -> Pressure:
    return Pressure({"load": Threshold(0.9, 0.7), "memory": Threshold(0.9, 0.7)})


def read(pressure: Pressure, *loads: float, memory: float = 0.0) -> list[int]:
    """The steps after each of these readings; checks that a change is told, and nothing else."""
    steps = []
    for load in loads:
        before = pressure.steps
        assert pressure.read({"load": load, "memory": memory}) == (pressure.steps != before)
        steps.append(pressure.steps)
    return steps


@pytest.mark.parametrize(
    ("loads", "steps"),
    [
        ([HIGH] * 2, [0, 0]),
        ([HIGH] * 3, [0, 0, 1]),  # patience
        ([HIGH] * 7, [0, 0, 1, 1, 1, 2, 2]),  # and again for each further step
        ([HIGH] * 15, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]),  # not beyond the most
        ([HIGH, HIGH, BETWEEN, HIGH, HIGH, HIGH], [0, 0, 0, 0, 0, 1]),  # in a row
        ([HIGH, HIGH, LOW, HIGH, HIGH, LOW], [0] * 6),
        ([HIGH] * 3 + [BETWEEN] * 9, [0, 0, 1] + [1] * 9),  # between the marks nothing changes
        ([HIGH] * 3 + [LOW] * 4, [0, 0, 1, 1, 1, 0, 0]),  # back, and not below none
        ([HIGH] * 3 + [LOW, LOW, BETWEEN, LOW, LOW, LOW], [0, 0, 1, 1, 1, 1, 1, 1, 0]),
        ([HIGH] * 3 + [LOW, LOW, HIGH, LOW, LOW, LOW], [0, 0, 1, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_a_step_for_three_readings_in_a_row(pressure: Pressure, loads: list[float], steps: list[int]) -> None:
    """Down at or over the high mark, back at or under the low one."""
    assert read(pressure, *loads) == steps


def test_one_high_reading_is_enough_and_all_must_be_low(pressure: Pressure) -> None:
    """Of load and memory; the cause names what was too high, and stays when that has passed."""
    assert pressure.cause == ""
    assert read(pressure, *[LOW] * 3, memory=1.0)[-1] == 1
    assert pressure.cause == "memory"
    assert read(pressure, *[LOW] * 5, memory=BETWEEN)[-1] == 1
    assert read(pressure, *[LOW] * 3)[-1] == 0
    assert pressure.cause == "memory"
    assert read(pressure, *[HIGH] * 3, memory=1.0)[-1] == 1
    assert pressure.cause == "load, memory"


def test_what_is_not_read_is_low(pressure: Pressure) -> None:
    """And what has no mark is not looked at."""
    for _ in range(3):
        pressure.read({"load": HIGH})
    assert pressure.steps == 1
    for _ in range(3):
        pressure.read({"gpu": 1.0})
    assert pressure.steps == 0


def test_what_is_lost_while_it_was_high_gives_its_steps_back(pressure: Pressure) -> None:
    """All of them, though the rest is still read; a loss between high readings starts their count again."""
    assert read(pressure, *[LOW] * 9, memory=1.0)[-1] == 3
    assert steps_without_memory(pressure, 9) == [3, 3, 2, 2, 2, 1, 1, 1, 0]
    assert read(pressure, *[LOW] * 2, memory=1.0)[-1] == 0
    assert steps_without_memory(pressure, 1) == [0]
    assert read(pressure, *[LOW] * 3, memory=1.0) == [0, 0, 1]


def steps_without_memory(pressure: Pressure, count: int) -> list[int]:
    steps = []
    for _ in range(count):
        pressure.read({"load": LOW})
        steps.append(pressure.steps)
    return steps


def test_nothing_is_low_at_its_high_mark() -> None:
    """Marks that are set the wrong way round make no flutter."""
    pressure = Pressure({"load": Threshold(0.7, 0.9)})
    steps = []
    for _ in range(18):
        pressure.read({"load": 0.8})
        steps.append(pressure.steps)
    assert steps == sorted(steps)
    assert steps[-1] == Pressure.MAX_STEPS
