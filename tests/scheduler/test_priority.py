"""Names of the classes, the default limits, and the order that keys give."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.priority import (
    ALIASES,
    CLASS_COUNT,
    DEFAULT_LIMITS,
    ClassLimits,
    PriorityClass,
    aging_horizon_ns,
    key,
    parse_priority,
)
from tickring.v1 import types_pb2

MS = 1_000_000


def test_values_are_those_of_the_wire() -> None:
    """A class read from a request needs no table."""
    wire = {name.removeprefix("PRIORITY_"): number for name, number in types_pb2.Priority.items()}
    del wire["UNSPECIFIED"]
    assert {member.name: member.value for member in PriorityClass} == wire
    assert [member.index for member in PriorityClass] == list(range(CLASS_COUNT))


@pytest.mark.parametrize("member", PriorityClass)
def test_a_class_is_found_by_name_and_number(member: PriorityClass) -> None:
    """In any case, with blanks around it."""
    assert parse_priority(member.label) is member
    assert parse_priority(f" {member.label.upper()}\n") is member
    assert parse_priority(str(int(member))) is member


def test_aliases() -> None:
    """Those of the contract."""
    assert ALIASES == {
        "high": PriorityClass.REAL_TIME_TRADING,
        "normal": PriorityClass.BATCH_PROCESSING,
        "low": PriorityClass.BACKGROUND_TASKS,
    }
    assert [parse_priority(alias) for alias in ALIASES] == list(ALIASES.values())


@pytest.mark.parametrize("text", ["", "0", "6", "urgent", "high low", "1.0", "REAL-TIME"])
def test_anything_else_is_refused_with_the_choice(text: str) -> None:
    """The message repeats the value and lists every name, alias and number."""
    with pytest.raises(ValueError, match="is no priority") as raised:
        parse_priority(text)
    assert str(raised.value) == (
        f"{text!r} is no priority, allowed is real_time_trading, market_data_update, batch_processing, "
        "historical_analysis, background_tasks, high, normal, low or 1 to 5"
    )


def test_a_long_text_is_not_repeated_whole() -> None:
    """Nor does it break the line."""
    with pytest.raises(ValueError, match="is no priority") as raised:
        parse_priority("x\n" * 1000)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_default_limits_are_the_contracts() -> None:
    """Slack, wait and timeout in milliseconds; every queue is bounded."""
    assert [
        (limits.slack_ns / MS, limits.max_wait_ns / MS, limits.default_timeout_ns / MS)
        for limits in DEFAULT_LIMITS
    ] == [(0, 0, 100), (5, 1, 200), (50, 5, 1000), (500, 10, 10_000), (2000, 20, 60_000)]
    assert all(0 < limits.queue_limit <= 1 << 16 for limits in DEFAULT_LIMITS)


def test_a_key_is_enqueue_time_plus_slack() -> None:
    """In nanoseconds."""
    assert [key(7, limits) for limits in DEFAULT_LIMITS] == [
        7,
        5 * MS + 7,
        50 * MS + 7,
        500 * MS + 7,
        2000 * MS + 7,
    ]


def test_the_aging_horizon_is_counted_from_the_least_slack() -> None:
    """Adding the same slack to all classes changes no order, and so no horizon."""
    raised = [
        ClassLimits(limits.slack_ns + 3 * MS, 0, 1, 1) for limits in reversed(DEFAULT_LIMITS)
    ]  # and no class has to be the first
    assert aging_horizon_ns(raised, PriorityClass.REAL_TIME_TRADING) == 2000 * MS
    assert aging_horizon_ns(raised, PriorityClass.BACKGROUND_TASKS) == 0
    assert [aging_horizon_ns(DEFAULT_LIMITS, of) / MS for of in PriorityClass] == [0, 5, 50, 500, 2000]


@given(
    slacks_ns=st.lists(st.integers(0, 10**6), min_size=CLASS_COUNT, max_size=CLASS_COUNT),
    first_ns=st.integers(0, 2**62),
    later_ns=st.integers(0, 2 * 10**6),
)
def test_nothing_overtakes_from_beyond_the_horizon(
    slacks_ns: list[int], first_ns: int, later_ns: int
) -> None:
    """For any two classes: a later item comes first only if it arrived within the horizon."""
    limits = [ClassLimits(slack_ns, 0, 1, 1) for slack_ns in slacks_ns]
    for waiting, arriving in itertools.product(PriorityClass, PriorityClass):
        overtakes = key(first_ns + later_ns, limits[arriving.index]) < key(first_ns, limits[waiting.index])
        assert not overtakes or later_ns < aging_horizon_ns(limits, waiting)


@given(slacks_ns=st.lists(st.integers(0, 10**6), min_size=CLASS_COUNT, max_size=CLASS_COUNT))
def test_the_horizon_is_no_larger_than_it_must_be(slacks_ns: list[int]) -> None:
    """One nanosecond before it, some class does overtake."""
    limits = [ClassLimits(slack_ns, 0, 1, 1) for slack_ns in slacks_ns]
    for waiting in PriorityClass:
        horizon_ns = aging_horizon_ns(limits, waiting)
        if horizon_ns > 0:
            assert min(key(horizon_ns - 1, limit) for limit in limits) < key(0, limits[waiting.index])
