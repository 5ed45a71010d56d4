"""When requests that are turned away begin to be many, and when they cease to be."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from server.telemetry.storms import LOOK_EVERY_S, STORM_PER_S, Ended, StormLog, Storms
from server.telemetry.trace_context import Origin

SECOND_NS = 1_000_000_000
FULL = ("QUEUE_FULL", "batch_processing")
LATE = ("DEADLINE_UNREACHABLE", "batch_processing")
NOBODY = Origin("a.Service/Method")


def test_storm_begins_with_one_more_than_the_limit_in_a_second() -> None:
    """Once, however many follow."""
    storms = Storms()
    assert [storms.note(FULL, SECOND_NS) for _ in range(STORM_PER_S + 50)].index(True) == STORM_PER_S
    assert not any(storms.note(FULL, SECOND_NS) for _ in range(50))
    assert storms.on


def test_a_steady_trickle_is_no_storm() -> None:
    """As many as the limit in each second, for a minute."""
    storms = Storms()
    step_ns = SECOND_NS // STORM_PER_S
    assert not any(storms.note(FULL, number * step_ns) for number in range(60 * STORM_PER_S))
    assert not storms.on


def test_kinds_are_counted_apart() -> None:
    """The limit is for each."""
    storms = Storms()
    for _ in range(STORM_PER_S):
        assert not storms.note(FULL, SECOND_NS)
        assert not storms.note(LATE, SECOND_NS)
    assert storms.note(LATE, SECOND_NS)


def test_storm_ends_when_a_second_has_no_more_than_the_limit() -> None:
    """With its count and how long it was."""
    storms = Storms()
    for _ in range(STORM_PER_S + 1):
        storms.note(FULL, SECOND_NS)
    assert storms.look(SECOND_NS + SECOND_NS // 2) == []  # less than a second is too short to tell
    for _ in range(STORM_PER_S + 1):
        storms.note(FULL, 2 * SECOND_NS)
    assert storms.look(2 * SECOND_NS) == []
    assert storms.on
    storms.note(FULL, 3 * SECOND_NS)
    assert storms.look(3 * SECOND_NS) == [Ended(FULL, 2 * STORM_PER_S + 3, 2.0)]
    assert not storms.on
    assert storms.look(9 * SECOND_NS) == []


def test_next_storm_is_another_one() -> None:
    """It counts from nothing."""
    storms = Storms()
    for start_ns in (SECOND_NS, 10 * SECOND_NS):
        assert sum(storms.note(FULL, start_ns) for _ in range(STORM_PER_S + 5)) == 1
        (ended,) = storms.look(start_ns + 2 * SECOND_NS)
        assert ended.total == STORM_PER_S + 5


def test_log_has_one_line_for_the_begin_and_one_for_the_end() -> None:
    """Whoever the requests came from; the first line has the trace of one of them."""
    now_ns = [SECOND_NS]
    timers: list[tuple[float, Callable[[], None]]] = []
    with capture_logs() as lines:
        storm_log = StormLog(lambda: now_ns[0], lambda after_s, look: timers.append((after_s, look)))
        traced = Origin("a.Service/Method", f"00-{'ab' * 16}-{'cd' * 8}-00")
        for number in range(STORM_PER_S * 10):
            storm_log.note(*FULL, traced if number == STORM_PER_S else NOBODY)
        (timer,) = timers
        assert timer[0] == pytest.approx(LOOK_EVERY_S)
        now_ns[0] += SECOND_NS
        timers.pop()[1]()  # it goes on
        now_ns[0] += SECOND_NS
        timers.pop()[1]()
    assert not timers, "nobody looks where there is no storm"
    assert [line["event"] for line in lines] == ["refusal storm", "refusal storm has ended"]
    assert (lines[0]["reason"], lines[0]["priority"], lines[0]["trace_id"]) == (*FULL, "ab" * 16)
    assert lines[1]["requests"] == STORM_PER_S * 10
