"""The views of a running service: what the status page, `/live`, `/slo` and GetStatus tell of it.

All of them are made of readings (`server.telemetry.totals`), one a second, and of what the supervisor knows.
"""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

import structlog

from scheduler.clock import Clock, MonotonicClock
from server.administration import CurrentSettings
from server.deep_health import UNHEALTHY, DeepHealth
from server.reply import Reply, Route, as_json, text
from server.revision import Revision
from server.status_page import page
from server.telemetry import live
from server.telemetry.advice import Case, advise
from server.telemetry.slo import JUDGED_S, NO_DATA, WINDOWS_S, judge, state_of
from server.telemetry.totals import Totals
from server.telemetry.windows import Windows

EVERY_S = 1.0

log = structlog.get_logger()


class Supervised(Protocol):
    """What the supervisor knows; see `server.supervisor.Supervisor`."""

    stopping: bool
    revision: Revision

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        ...

    @property
    def announced(self) -> bool:
        """Whether it ever did."""
        ...

    def books(self) -> dict[str, Any]:
        """See `server.books.books`."""
        ...

    def missing(self) -> list[str]:
        """Processes that should serve and do not."""
        ...


class Overview:
    """One for a service, on its supervisor's event loop."""

    def __init__(
        self,
        service: Supervised,
        read: Callable[[], Totals],
        current_settings: Callable[[], CurrentSettings],
        health: DeepHealth,
        clock: Clock | None = None,
    ) -> None:
        """`read`: makes a reading; `current_settings`: see `Administration`. Uptime counts from here on."""
        self._service = service
        self._read = read
        self._current_settings = current_settings
        self._health = health
        self._clock = clock or MonotonicClock()
        self._started_ns = self._clock.now_ns()
        self._windows = Windows()
        self._live: tuple[Totals | None, Reply] | None = None

    async def run(self) -> None:
        """Takes a reading now and every second. Until cancelled."""
        while True:
            try:
                self.keep(self._read())
            except Exception:  # a bug, but none that a request should suffer from
                log.exception("no further readings: what is shown stays as it is")
                return
            await asyncio.sleep(EVERY_S)

    def keep(self, reading: Totals) -> None:
        """Takes a reading in that is newer than all before."""
        self._windows.add(reading)

    def routes(self) -> Mapping[str, Route]:
        """What port 8002 answers of these."""
        return {"/": _page, "/live": self._live_reply, "/slo": self._slo_reply, "/healthz": self._healthz}

    @property
    def state(self) -> str:
        """In a word or two."""
        if self._service.stopping:
            return "draining"
        if self._service.is_ready:
            return "ready"
        return "not ready" if self._service.announced else "starting"

    def report(self) -> dict[str, Any]:
        """State, the last second and minute, readings and SLO report, as GetStatus names them."""
        spans = [(seconds, self._windows.over(seconds)) for seconds in live.ACTIVITY_S]
        newest = self._windows.over(live.ACTIVITY_S[0])
        return {
            "state": self.state,
            "activity": [live.activity(span, seconds) for seconds, span in spans if span is not None],
            "readings": {} if newest is None else live.readings(newest),
            "slo": self.slo(),
        }

    def slo(self) -> dict[str, Any]:
        """Every window with its objectives, and what to change."""
        settings = self._service.revision.settings
        windows = []
        state, recommendations = NO_DATA, []
        for seconds in WINDOWS_S:
            span = self._windows.over(seconds)
            if span is None:
                continue
            objectives = judge(span, settings.slo, settings.class_limits)
            windows.append(live.window(seconds, span, objectives, state_of(objectives)))
            if seconds == JUDGED_S:
                state = state_of(objectives)
                recommendations = advise(Case(span, settings, objectives))
        return {
            "state": state,
            "windows": windows,
            "recommendations": [live.recommendation(each) for each in recommendations],
        }

    async def health(self) -> dict[str, Any]:
        """A deep check, see `DeepHealth`."""
        return (await self._health.check()).to_json()

    async def _live_reply(self, _query: str) -> Reply:
        newest = self._windows.newest
        # However many look at it, it is put together once for each reading.
        if self._live is None or self._live[0] is not newest:
            current = self._current_settings()
            found = {
                "uptime_s": (self._clock.now_ns() - self._started_ns) / 1e9,
                "settings_version": current.version,
                "profile": current.profile,
                **self.report(),
                "history": live.history(self._windows.steps()),
                "missing": self._service.missing(),
                **self._service.books(),
            }
            self._live = newest, as_json(found)
        return self._live[1]

    async def _slo_reply(self, _query: str) -> Reply:
        return as_json(self.slo())

    async def _healthz(self, query: str) -> Reply:
        if parse_qs(query).get("deep") != ["1"]:
            return text("ok\n")
        verdict = await self.health()
        failed = verdict["state"] == UNHEALTHY
        return as_json(verdict, HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK)


async def _page(_query: str) -> Reply:
    return page()
