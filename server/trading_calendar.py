"""When which profile is in effect, by the trading hours of an exchange.

Holidays, half days and changes of the clocks are those of exchange-calendars, which knows them in advance. It
is an extra of its own because it brings pandas.
"""

import difflib
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import structlog

from server.configuration import Configuration
from server.layers import AUTO, MARKET_HOURS, OFF_HOURS
from server.problems import Problem, SettingsError

# How far ahead sessions are looked up, and how far before the end of that they are looked up again.
_AHEAD = timedelta(days=500)
_SPARE = timedelta(days=100)
# No service that has the right time asks for earlier days.
_FIRST = date(2000, 1, 1)
_MAX_NEAR = 3

log = structlog.get_logger()


class Span(NamedTuple):
    """A time of market hours, without the instant of its end."""

    start: datetime
    end: datetime


_EVER = Span(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


class TradingCalendar:
    """Market hours of one exchange: from `lead_s` before each open until the close, lunch included.

    Days that exchange-calendars has no data for count as market hours throughout; of those to come, the log
    says so. To construct it and to ask it may block for a second. Not for two threads at once.
    """

    def __init__(self, exchange: str, lead_s: float) -> None:
        """Raises SettingsError when exchange-calendars is not installed or knows no such exchange."""
        self._exchange = exchange
        self._lead = timedelta(seconds=lead_s)
        self._type = _calendar_type(exchange)
        self._spans: list[Span] = []  # ascending and apart
        self._known_until = self._good_until = _EVER.start

    def profile_at(self, instant: datetime) -> tuple[str, datetime]:
        """The profile at this instant, which has a time zone, and until when it stays at least, in UTC."""
        if self._good_until <= instant:
            self._look_up(instant)
        index = bisect_right(self._spans, instant, key=lambda span: span.start)
        if index > 0 and instant < self._spans[index - 1].end:
            return MARKET_HOURS, self._spans[index - 1].end
        return OFF_HOURS, self._spans[index].start if index < len(self._spans) else self._known_until

    def _look_up(self, instant: datetime) -> None:
        """Finds the spans until well after this instant."""
        first, last = self._type.bound_min(), self._type.bound_max()
        begin = _FIRST if first is None else max(_FIRST, first.date())
        end = max(begin, instant.astimezone(UTC).date()) + _AHEAD
        self._known_until, self._good_until = _midnight(end), _midnight(end - _SPARE)
        unknown = [Span(_EVER.start, _midnight(begin))]
        if last is not None and last.date() < end:
            end = last.date()
            self._known_until = self._good_until = _EVER.end
            unknown.append(Span(_midnight(end + timedelta(days=1)), _EVER.end))
            log.warning(
                "market hours are assumed after the last day that exchange-calendars knows of this exchange",
                exchange=self._exchange,
                last=str(end),
            )
        calendar = self._type(start=str(begin), end=str(end))
        sessions = [
            Span(opens.to_pydatetime() - self._lead, closes.to_pydatetime())
            for opens, closes in zip(calendar.opens, calendar.closes, strict=True)
        ]
        self._spans = _joined(sorted(unknown + sessions))


def _calendar_type(exchange: str) -> Any:
    """The class of this exchange's calendars."""
    try:
        # Only here: it loads pandas, and is not installed everywhere.
        import exchange_calendars
    except ImportError:
        allowed = "needs exchange-calendars to follow an exchange: pip install 'tickring[calendar]'"
        raise SettingsError([Problem("profile", "auto", allowed)]) from None
    known = exchange_calendars.get_calendar_names(include_aliases=True)
    if exchange not in known:
        raise SettingsError(
            [Problem("calendar.exchange", exchange, f"is no exchange, {_nearest(exchange, known)}")]
        )
    return type(exchange_calendars.get_calendar(exchange))


def _nearest(exchange: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(exchange.upper(), known, n=_MAX_NEAR)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "allowed are the names of exchange-calendars, such as XNYS, XLON and XTKS"


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same without gaps of no length, which would be switches there and back; `spans` ascend."""
    joined: list[Span] = []
    for span in spans:
        if joined and span.start <= joined[-1].end:
            span = Span(joined[-1].start, max(joined[-1].end, span.end))
            joined.pop()
        joined.append(span)
    return joined


def at_this_hour(configuration: Configuration) -> Configuration:
    """With the profile that its calendar has now, where it is to follow one. May block for a second.

    Raises:
        SettingsError: there is no such calendar.
    """
    if configuration.chosen_profile != AUTO:
        return configuration
    table = configuration.settings.calendar
    profile, _ = TradingCalendar(table.exchange, table.lead_s).profile_at(datetime.now(UTC))
    return configuration.with_profile(profile)
