"""An overview of a service that is made up: a steady load since it was started, and models that answer."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from server.administration import CurrentSettings
from server.deep_health import DeepHealth
from server.lineup import Lineup
from server.overview import Overview
from server.revision import Revision
from server.settings import Settings
from server.telemetry.totals import Totals
from tests.server.made_up import at_second

# So much of its load lies in the past when it starts.
PAST_S = 90


class Administered(Protocol):
    """What an overview needs of an administration."""

    def books(self) -> dict[str, Any]: ...

    def current_settings(self) -> CurrentSettings: ...


class MadeUpService:
    """Serves, and says what the books of an administration say."""

    def __init__(self, books: Callable[[], dict[str, Any]], settings: Settings, lineup: Lineup) -> None:
        self.books = books
        self.revision = Revision(1, settings, lineup)
        self.stopping = False
        self.announced = True
        self.is_ready = True
        self.gone: list[str] = []

    def missing(self) -> list[str]:
        return self.gone


async def all_answer(_timeout_s: float) -> Mapping[str, list[dict[str, Any]] | None]:
    """Every prediction is answered."""
    prediction = {"model_name": "pair", "model_version": "3", "ms": 1.5, "error": "", "by_model": False}
    return {"frontend-0": [prediction]}


def overview(
    administered: Administered,
    lineup: Lineup,
    *,
    settings: Settings | None = None,
    read: Callable[[], Totals] | None = None,
) -> tuple[Overview, MadeUpService]:
    """Over a made-up service; without `read`, its load began `PAST_S` ago."""
    service = MadeUpService(administered.books, settings or Settings(), lineup)
    began_s = time.monotonic() - PAST_S
    seen = Overview(
        service,
        read or (lambda: at_second(time.monotonic() - began_s)),
        administered.current_settings,
        DeepHealth(service, all_answer, lambda: service.revision.settings.slo.p99_ms),
    )
    if read is None:
        for second in range(PAST_S):
            seen.keep(at_second(second))
    return seen, service
