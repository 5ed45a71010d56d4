"""The profile follows a calendar, on a clock that the test turns."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from server.profile_switch import LOOK_EVERY, Calendar, ProfileSwitch, WallClock
from server.trading_calendar import TradingCalendar

MARKET, OFF = "market_hours", "off_hours"
OPEN = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Over(Exception):
    """The clock has come to the end of the test."""


class TurnedClock:
    """Sleeping turns it, until `end`. A jump is where it is instead after a sleep past an instant."""

    def __init__(self, start: datetime, end: datetime, *jumps: tuple[datetime, datetime]) -> None:
        self._now, self._end = start, end
        self._jumps = list(jumps)
        self.sleeps: list[timedelta] = []

    def now(self) -> datetime:
        return self._now

    def pass_by(self, duration: timedelta) -> None:
        """While something else takes long."""
        self._now += duration

    async def sleep_until(self, instant: datetime) -> None:
        self.sleeps.append(instant - self._now)
        if instant >= self._end:
            raise Over
        self._now = max(self._now, instant)
        if self._jumps and self._now >= self._jumps[0][0]:
            self._now = self._jumps.pop(0)[1]


class OneDay:
    """Market hours from OPEN on for an hour; raises at its first askings, if told to."""

    def __init__(self, failures: int = 0) -> None:
        self._failures = failures

    def profile_at(self, instant: datetime) -> tuple[str, datetime]:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("no calendar today")
        for end, profile in ((OPEN, OFF), (OPEN + timedelta(hours=1), MARKET)):
            if instant < end:
                return profile, end
        return OFF, datetime.max.replace(tzinfo=UTC)


class Applied:
    """What was applied when; raises the first times, if told to, after having taken its time."""

    def __init__(
        self, clock: TurnedClock, failures: int = 0, takes: timedelta = timedelta(), current: str = OFF
    ) -> None:
        self.current = current
        self._clock = clock
        self._failures = failures
        self._takes = takes
        self.asked: list[tuple[datetime, str]] = []

    async def __call__(self, profile: str) -> None:
        self.asked.append((self._clock.now(), profile))
        self._clock.pass_by(self._takes)
        if self._failures:
            self._failures -= 1
            raise RuntimeError("an engine could not be prepared")
        self.current = profile


async def follow(calendar: Calendar, clock: TurnedClock, applied: Applied) -> None:
    """Until the clock's end."""
    with pytest.raises(Over):
        await ProfileSwitch(calendar, applied, clock, lambda: applied.current).run()
    assert max(clock.sleeps) <= LOOK_EVERY


def at(zone: str) -> Callable[[str], datetime]:
    return lambda text: datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("exchange", "zone", "start", "end", "switches"),
    [
        # Thanksgiving on Thursday, a half day on Friday, the weekend.
        (
            "XNYS",
            "America/New_York",
            "2026-11-25 00:00",
            "2026-12-01 00:00",
            "11-25 09:29, 11-25 16:00, 11-27 09:29, 11-27 13:00, 11-30 09:29, 11-30 16:00",
        ),
        # The clocks go forward on Sunday.
        (
            "XNYS",
            "America/New_York",
            "2026-03-06 08:00",
            "2026-03-09 18:00",
            "03-06 09:29, 03-06 16:00, 03-09 09:29, 03-09 16:00",
        ),
        # The clocks go back on Sunday.
        (
            "XLON",
            "Europe/London",
            "2026-10-23 06:00",
            "2026-10-26 18:00",
            "10-23 07:59, 10-23 16:30, 10-26 07:59, 10-26 16:30",
        ),
        # A holiday on Monday; lunch is no close.
        (
            "XTKS",
            "Asia/Tokyo",
            "2026-11-20 06:00",
            "2026-11-24 18:00",
            "11-20 08:59, 11-20 15:30, 11-24 08:59, 11-24 15:30",
        ),
        # Christmas Eve is a half day, and Christmas a Friday.
        (
            "XHKG",
            "Asia/Hong_Kong",
            "2026-12-24 06:00",
            "2026-12-28 18:00",
            "12-24 09:29, 12-24 12:00, 12-28 09:29, 12-28 16:00",
        ),
    ],
)
async def test_switches_at_each_open_and_close(
    exchange: str, zone: str, start: str, end: str, switches: str
) -> None:
    """To the second, and at no other time; a minute before the open."""
    there = at(zone)
    clock = TurnedClock(there(start).astimezone(UTC), there(end))
    applied = Applied(clock)
    await follow(TradingCalendar(exchange, 60.0), clock, applied)
    wanted = [there(f"2026-{text}") for text in switches.split(", ")]
    assert [instant for instant, _ in applied.asked] == wanted
    assert [profile for _, profile in applied.asked] == [MARKET, OFF] * (len(wanted) // 2)


async def test_profile_in_effect_is_not_applied_again() -> None:
    """Only when the calendar has another one, which may be at once."""
    clock = TurnedClock(OPEN, OPEN + timedelta(minutes=30))
    applied = Applied(clock, current=MARKET)
    await follow(OneDay(), clock, applied)
    assert applied.asked == []
    clock = TurnedClock(OPEN, OPEN + timedelta(minutes=30))
    applied = Applied(clock, current="stress_test")
    await follow(OneDay(), clock, applied)
    assert applied.asked == [(OPEN, MARKET)]


async def test_profile_that_somebody_else_changed_is_put_right() -> None:
    """At the next look, although the calendar has no other one than before."""
    clock = TurnedClock(OPEN, OPEN + timedelta(minutes=30))
    applied = Applied(clock)

    class Meddling(OneDay):
        def profile_at(self, instant: datetime) -> tuple[str, datetime]:
            if instant == OPEN + 5 * LOOK_EVERY:
                applied.current = OFF
            return super().profile_at(instant)

    await follow(Meddling(), clock, applied)
    assert applied.asked == [(OPEN, MARKET), (OPEN + 5 * LOOK_EVERY, MARKET)]


@pytest.mark.parametrize("takes", [timedelta(), timedelta(minutes=5)])
async def test_switch_that_failed_is_tried_again_after_a_minute(takes: timedelta) -> None:
    """From when it failed; until it succeeds, and each failure is logged."""
    clock = TurnedClock(OPEN - SECOND, OPEN + timedelta(minutes=30))
    applied = Applied(clock, failures=2, takes=takes)
    with capture_logs() as lines:
        await follow(OneDay(), clock, applied)
    assert applied.asked == [(OPEN + tries * (LOOK_EVERY + takes), MARKET) for tries in range(3)]
    told = [(line["log_level"], line["event"], line["error"]) for line in lines]
    assert told == [("error", "profile not switched", "an engine could not be prepared")] * 2


async def test_failed_switch_is_given_up_once_its_time_is_over() -> None:
    """The profile that was never left is that of the hour again."""
    clock = TurnedClock(OPEN + timedelta(minutes=58, seconds=30), OPEN + timedelta(minutes=90))
    applied = Applied(clock, failures=2)
    await follow(OneDay(), clock, applied)
    assert [profile for _, profile in applied.asked] == [MARKET, MARKET]


async def test_calendar_that_fails_is_asked_again() -> None:
    """The profile stays as it is meanwhile."""
    clock = TurnedClock(OPEN, OPEN + timedelta(minutes=30))
    applied = Applied(clock)
    with capture_logs() as lines:
        await follow(OneDay(failures=3), clock, applied)
    assert applied.asked == [(OPEN + 3 * LOOK_EVERY, MARKET)]
    assert [line["error"] for line in lines] == ["no calendar today"] * 3


async def test_clock_that_is_set_is_noticed_at_the_next_look() -> None:
    """Forwards past the open and the close, and back again."""
    hour = timedelta(hours=1)
    clock = TurnedClock(
        OPEN - 3 * hour,
        OPEN + 4 * hour,
        (OPEN - 2 * hour, OPEN + SECOND),
        (OPEN + SECOND + timedelta(minutes=5), OPEN + 2 * hour),
        (OPEN + 3 * hour, OPEN + timedelta(minutes=10)),
    )
    applied = Applied(clock)
    await follow(OneDay(), clock, applied)
    assert applied.asked == [
        (OPEN + SECOND, MARKET),
        (OPEN + 2 * hour, OFF),
        (OPEN + timedelta(minutes=10), MARKET),
        (OPEN + hour, OFF),
    ]


async def test_switch_ends_when_it_is_cancelled() -> None:
    """In the middle of an apply, too: that is not a failure of the switch."""
    begun, forever = asyncio.Event(), asyncio.Event()

    async def apply(profile: str) -> None:
        begun.set()
        await forever.wait()

    clock = TurnedClock(OPEN, OPEN + timedelta(minutes=30))
    task = asyncio.create_task(ProfileSwitch(OneDay(), apply, clock, lambda: OFF).run())
    await begun.wait()
    with capture_logs() as lines:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert lines == []


async def test_wall_clock_sleeps_until_an_instant() -> None:
    """And not at all until one that is past."""
    clock = WallClock()
    loop = asyncio.get_running_loop()
    await clock.sleep_until(clock.now() - timedelta(days=1))
    before = loop.time()
    await clock.sleep_until(clock.now() + timedelta(milliseconds=50))
    assert loop.time() - before > 0.025
    assert clock.now().utcoffset() == timedelta()
