"""Which profile the hours of an exchange ask for, on holidays and half days and when clocks change."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import exchange_calendars
import pytest
from structlog.testing import capture_logs

from server.problems import SettingsError
from server.trading_calendar import TradingCalendar

ZONES = {
    "XNYS": "America/New_York",
    "XLON": "Europe/London",
    "XTKS": "Asia/Tokyo",
    "XHKG": "Asia/Hong_Kong",
    "XSAU": "Asia/Riyadh",
}
MINUTE = timedelta(minutes=1)


def local(exchange: str, text: str) -> datetime:
    """Such as "2026-11-26 09:30", on the exchange's clocks."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(ZONES[exchange]))


MARKET, OFF = "market_hours", "off_hours"
# Exchange, time there, profile, until when; the profile of market hours starts a minute before the open.
CASES = [
    # An ordinary day, to the second.
    ("XNYS", "2026-11-24 09:28:59", OFF, "2026-11-24 09:29"),
    ("XNYS", "2026-11-24 09:29:00", MARKET, "2026-11-24 16:00"),
    ("XNYS", "2026-11-24 15:59:59.999999", MARKET, "2026-11-24 16:00"),
    ("XNYS", "2026-11-24 16:00:00", OFF, "2026-11-25 09:29"),
    # Thanksgiving, the half day after it, and the weekend.
    ("XNYS", "2026-11-25 16:00", OFF, "2026-11-27 09:29"),
    ("XNYS", "2026-11-26 12:00", OFF, "2026-11-27 09:29"),
    ("XNYS", "2026-11-27 12:59", MARKET, "2026-11-27 13:00"),
    ("XNYS", "2026-11-27 13:00", OFF, "2026-11-30 09:29"),
    # The clocks change on the Sunday: the weekend is an hour longer in November, shorter in March.
    ("XNYS", "2026-10-30 16:00", OFF, "2026-11-02 09:29"),
    ("XNYS", "2027-03-12 16:00", OFF, "2027-03-15 09:29"),
    # Europe's clocks change on other days than New York's.
    ("XLON", "2026-10-23 16:30", OFF, "2026-10-26 07:59"),
    ("XLON", "2026-10-26 07:59", MARKET, "2026-10-26 16:30"),
    # Christmas Eve is a half day; Boxing Day falls on a Saturday and is made up for on the Monday.
    ("XLON", "2026-12-24 12:00", MARKET, "2026-12-24 12:30"),
    ("XLON", "2026-12-24 12:30", OFF, "2026-12-29 07:59"),
    # Lunch does not count, and clocks never change.
    ("XTKS", "2026-11-24 08:59", MARKET, "2026-11-24 15:30"),
    ("XTKS", "2026-11-24 12:00", MARKET, "2026-11-24 15:30"),
    ("XTKS", "2026-11-20 15:30", OFF, "2026-11-24 08:59"),
    ("XTKS", "2026-12-30 15:30", OFF, "2027-01-04 08:59"),
    ("XHKG", "2026-11-24 12:30", MARKET, "2026-11-24 16:00"),
    ("XHKG", "2026-12-24 11:59", MARKET, "2026-12-24 12:00"),
    ("XHKG", "2026-12-24 12:00", OFF, "2026-12-28 09:29"),
    # The week starts on Sunday.
    ("XSAU", "2026-11-19 15:00", OFF, "2026-11-22 09:59"),
]


@pytest.fixture(scope="module")
def calendars() -> dict[str, TradingCalendar]:
    return {exchange: TradingCalendar(exchange, 60.0) for exchange in ZONES}


@pytest.mark.parametrize(("exchange", "at", "profile", "until"), CASES)
def test_hours_of_an_exchange(
    calendars: dict[str, TradingCalendar], exchange: str, at: str, profile: str, until: str
) -> None:
    """As its own clocks show them."""
    found = calendars[exchange].profile_at(local(exchange, at))
    assert found == (profile, local(exchange, until))


def test_lead_is_how_long_before_the_open_market_hours_start() -> None:
    """It does not move the close; with none they start with the open."""
    open_, close = local("XNYS", "2026-11-24 09:30"), local("XNYS", "2026-11-24 16:00")
    for lead_s in (0.0, 0.5, 3600.0):
        calendar = TradingCalendar("XNYS", lead_s)
        start = open_ - timedelta(seconds=lead_s)
        assert calendar.profile_at(start) == (MARKET, close)
        assert calendar.profile_at(start - timedelta(microseconds=1)) == (OFF, start)


@pytest.mark.parametrize(
    ("exchange", "at", "until"),
    [
        ("24/7", "2026-11-25 00:00", None),
        ("CMES", "2026-11-23 23:00", "2026-11-26 18:00"),
        ("CMES", "2026-11-26 22:30", "2026-11-27 18:00"),
    ],
)
def test_sessions_without_a_gap_are_one(exchange: str, at: str, until: str | None) -> None:
    """There would be a switch and one back in the same instant; an early close makes a gap."""
    instant = datetime.fromisoformat(at).replace(tzinfo=UTC)
    profile, found = TradingCalendar(exchange, 3600.0).profile_at(instant)
    assert profile == MARKET
    if until is None:
        assert found > instant + timedelta(days=365)
    else:
        assert found == datetime.fromisoformat(until).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "exchange", ["24/7", "ASEX", "CMES", "XASX", "XBOM", "XHKG", "XLON", "XNYS", "XSHG", "XTAE", "XTKS"]
)
def test_exchanges_all_over_the_world_have_hours(exchange: str) -> None:
    """With another version of pandas the library cannot tell them for Athens and Tel Aviv."""
    known = exchange_calendars.get_calendar(exchange)
    opens = known.next_open("2026-11-24 00:01")
    open_, close = opens.to_pydatetime(), known.next_close(opens).to_pydatetime()
    calendar = TradingCalendar(exchange, 60.0)
    profile, until = calendar.profile_at(open_)
    assert (profile, calendar.profile_at(close - MINUTE)[0]) == (MARKET, MARKET)
    assert until >= close
    assert (until == close) == (calendar.profile_at(close)[0] == OFF)


def test_calendar_goes_on_for_years() -> None:
    """Whoever walks from switch to switch meets each session once, wherever it is looked up again."""
    calendar = TradingCalendar("XNYS", 60.0)
    now, end = datetime(2026, 11, 24, tzinfo=UTC), datetime(2032, 11, 24, tzinfo=UTC)
    starts: list[datetime] = []
    ends: list[datetime] = []
    while now < end:
        profile, until = calendar.profile_at(now)
        assert until > now
        assert calendar.profile_at(until - timedelta(microseconds=1))[0] == profile
        (ends if profile == MARKET else starts).append(until)
        now = until
    sessions = exchange_calendars.get_calendar("XNYS", start="2026-11-24", end="2032-11-24")
    assert starts[: len(sessions.opens)] == [at.to_pydatetime() - MINUTE for at in sessions.opens]
    assert ends == [at.to_pydatetime() for at in sessions.closes][: len(ends)]
    assert len(ends) > 1500


def test_clock_may_go_back() -> None:
    """It was wrong before, or is now."""
    calendar = TradingCalendar("XNYS", 60.0)
    assert calendar.profile_at(local("XNYS", "2035-07-04 12:00"))[0] == OFF
    assert calendar.profile_at(local("XNYS", "2035-07-05 12:00"))[0] == MARKET
    assert calendar.profile_at(local("XNYS", "2026-11-26 12:00"))[0] == OFF
    assert calendar.profile_at(datetime(1970, 1, 1, tzinfo=UTC))[0] == MARKET


def test_days_that_nobody_knows_are_market_hours() -> None:
    """The holidays of some exchanges are known for a few years only; the log says until when."""
    last = exchange_calendars.get_calendar("XSAU").bound_max().date()
    midnight = datetime(last.year + 1, 1, 1, tzinfo=UTC)
    assert midnight.date() - last == timedelta(days=1)
    calendar = TradingCalendar("XSAU", 60.0)
    with capture_logs() as lines:
        assert calendar.profile_at(midnight - timedelta(days=1000))[1] < midnight
    assert lines == []
    with capture_logs() as lines:
        assert calendar.profile_at(midnight - MINUTE) == (OFF, midnight)
        profile, until = calendar.profile_at(midnight)
        assert profile == MARKET
        assert until > midnight + timedelta(days=3650)
        assert calendar.profile_at(midnight + timedelta(days=3650))[0] == MARKET
    (line,) = lines
    assert (line["log_level"], line["exchange"], line["last"]) == ("warning", "XSAU", str(last))


@pytest.mark.parametrize(
    ("exchange", "allowed"),
    [
        ("XNYSE", "is no exchange, did you mean XNYS"),
        ("xlon", "is no exchange, did you mean XLON"),
        (
            "somewhere",
            "is no exchange, allowed are the names of exchange-calendars, such as XNYS, XLON and XTKS",
        ),
    ],
)
def test_unknown_exchange_is_a_problem(exchange: str, allowed: str) -> None:
    """That names near ones."""
    with pytest.raises(SettingsError) as raised:
        TradingCalendar(exchange, 60.0)
    (problem,) = raised.value.problems
    assert (problem.path, problem.value) == ("calendar.exchange", exchange)
    assert problem.allowed.startswith(allowed)


def test_alias_is_an_exchange_too() -> None:
    """By the name that people use."""
    at = local("XNYS", "2026-11-27 13:00")
    assert TradingCalendar("NYSE", 60.0).profile_at(at) == TradingCalendar("XNYS", 60.0).profile_at(at)


def test_without_the_library_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without the extra serves all other profiles."""
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    with pytest.raises(SettingsError) as raised:
        TradingCalendar("XNYS", 60.0)
    assert str(raised.value) == (
        "profile = auto: needs exchange-calendars to follow an exchange: pip install 'tickring[calendar]'"
    )


def test_library_is_loaded_only_for_the_profile_that_needs_it() -> None:
    """It takes half a second and tens of megabytes."""
    code = "import server.__main__, sys; print({'exchange_calendars', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "set()"
