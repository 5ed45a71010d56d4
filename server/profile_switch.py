"""Follows a trading calendar while the profile is "auto"."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

import structlog

# How long it sleeps at most, whatever the calendar says: a clock that was set, or a machine that was
# suspended, is noticed within that. A switch that failed is tried again after it, too.
LOOK_EVERY = timedelta(minutes=1)

log = structlog.get_logger()


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """With a time zone."""

    async def sleep_until(self, instant: datetime) -> None:
        """May return early."""


class WallClock:
    """This machine's."""

    def now(self) -> datetime:
        """In UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, instant: datetime) -> None:
        """For as long as it is until then by now; of a clock that is set meanwhile nothing is noticed."""
        await asyncio.sleep((instant - self.now()).total_seconds())


class Calendar(Protocol):
    """A `server.trading_calendar.TradingCalendar`, or what is like it."""

    def profile_at(self, instant: datetime) -> tuple[str, datetime]:
        """The profile at an instant, and until when it stays at least. May block."""


class ProfileSwitch:
    """Calls `apply` with a profile whenever the calendar has another one than that in effect.

    `current` says which is in effect: others may change it too. Where `apply` raises, that is logged and
    tried again after LOOK_EVERY.
    """

    def __init__(
        self,
        calendar: Calendar,
        apply: Callable[[str], Awaitable[None]],
        clock: Clock,
        current: Callable[[], str],
    ) -> None:
        self._calendar = calendar
        self._apply = apply
        self._clock = clock
        self._current = current

    async def run(self) -> NoReturn:
        """Until it is cancelled."""
        while True:
            await self._clock.sleep_until(await self._look())

    async def _look(self) -> datetime:
        """Switches if it is time to; returns when to look again."""
        now = self._clock.now()
        try:
            # In a thread: it may load pandas, or look up another year.
            profile, until = await asyncio.to_thread(self._calendar.profile_at, now)
            if profile != self._current():
                await self._apply(profile)
        except Exception as error:
            log.error("profile not switched", current=self._current(), error=str(error), exc_info=True)
            return self._clock.now() + LOOK_EVERY  # to fail may have taken long
        return min(until, now + LOOK_EVERY)
