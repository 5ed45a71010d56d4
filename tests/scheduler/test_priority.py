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
    KeyStamp,
    PriorityClass,
    aging_horizon_ns,
    parse_priority,
    urgent_classes,
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


def limits_of(*slacks_ns: int) -> list[ClassLimits]:
    """By class; the last one for the remaining classes."""
    return [ClassLimits(slack_ns, 0, 1, 1) for slack_ns in [*slacks_ns, *[slacks_ns[-1]] * 5][:CLASS_COUNT]]


def test_a_key_is_enqueue_time_plus_slack() -> None:
    """In nanoseconds, for each model alike."""
    stamp = KeyStamp(2, DEFAULT_LIMITS)
    for model in (1, 0):
        keys = [stamp.key(model, class_index, 7) for class_index in range(CLASS_COUNT)]
        assert keys == [7, 5 * MS + 7, 50 * MS + 7, 500 * MS + 7, 2000 * MS + 7]


def test_more_slack_counts_from_the_next_item_on() -> None:
    """At once: keys may jump forward."""
    stamp = KeyStamp(1, limits_of(10))
    assert stamp.key(0, 2, 100) == 110
    stamp.change(limits_of(50))
    assert [stamp.key(0, 2, now) for now in (101, 102)] == [151, 152]


def test_with_less_slack_keys_stand_still_until_time_has_caught_up() -> None:
    """In the lane that was used, for as long as slack was lowered by; other lanes notice nothing."""
    stamp = KeyStamp(2, limits_of(50))
    assert stamp.key(0, 2, 100) == 150
    stamp.change(limits_of(10))
    assert [stamp.key(0, 2, now) for now in (101, 139, 140, 141)] == [150, 150, 150, 151]
    assert stamp.key(0, 3, 101) == 111  # another class
    assert stamp.key(1, 2, 101) == 111  # another model


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 1),  # model
            st.integers(0, CLASS_COUNT - 1),
            st.integers(0, 100),  # ns later
            st.none() | st.lists(st.integers(0, 200), min_size=CLASS_COUNT, max_size=CLASS_COUNT),
        ),
        max_size=40,
    )
)
def test_keys_of_a_lane_never_go_back_whatever_slack_becomes(
    steps: list[tuple[int, int, int, list[int] | None]],
) -> None:
    """And a key is never less than asked for: nothing becomes more urgent than its slack says."""
    slacks = [0] * CLASS_COUNT
    stamp, now_ns, last = KeyStamp(2, limits_of(0)), 0, dict[tuple[int, int], int]()
    for model, class_index, later_ns, changed in steps:
        if changed is not None:
            slacks = changed
            stamp.change(limits_of(*slacks))
        now_ns += later_ns
        key = stamp.key(model, class_index, now_ns)
        assert key == max(now_ns + slacks[class_index], last.get((model, class_index), 0))
        last[model, class_index] = key


@pytest.mark.parametrize(
    ("quantum_ms", "urgent"), [(0, 1), (4.9, 1), (5, 2), (10, 2), (50, 3), (1999, 4), (2000, 5)]
)
def test_a_class_that_cannot_stand_back_for_a_quantum_is_urgent(quantum_ms: float, urgent: int) -> None:
    """With the default slacks of 0, 5, 50, 500 and 2000 ms; the rest is bulk."""
    found = urgent_classes(DEFAULT_LIMITS, int(quantum_ms * MS))
    assert found == (True,) * urgent + (False,) * (CLASS_COUNT - urgent)


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
    limits = limits_of(*slacks_ns)
    stamp = KeyStamp(1, limits)
    first = [stamp.key(0, of.index, first_ns) for of in PriorityClass]
    later = [stamp.key(0, of.index, first_ns + later_ns) for of in PriorityClass]
    for waiting, arriving in itertools.product(PriorityClass, PriorityClass):
        overtakes = later[arriving.index] < first[waiting.index]
        assert not overtakes or later_ns < aging_horizon_ns(limits, waiting)


@given(slacks_ns=st.lists(st.integers(0, 10**6), min_size=CLASS_COUNT, max_size=CLASS_COUNT))
def test_the_horizon_is_no_larger_than_it_must_be(slacks_ns: list[int]) -> None:
    """One nanosecond before it, some class does overtake."""
    limits = limits_of(*slacks_ns)
    for waiting in PriorityClass:
        horizon_ns = aging_horizon_ns(limits, waiting)
        if horizon_ns > 0:
            key = KeyStamp(1, limits).key(0, waiting.index, 0)
            assert min(KeyStamp(1, limits).key(0, of.index, horizon_ns - 1) for of in PriorityClass) < key
