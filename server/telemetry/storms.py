"""Requests that are turned away by the thousand: a line when it begins and one when it is over."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from server.telemetry.trace_context import Origin

# Of one reason in one class, in a second, at one front end: what somebody should hear of while it happens.
# Below it counters tell the story, and single lines would tell it no better.
STORM_PER_S = 20
LOOK_EVERY_S = 1.0

_SECOND_NS = 1_000_000_000
# A reason of ErrorInfo, and the class's label; "" where a request was refused before that was known.
Kind = tuple[str, str]

log = structlog.get_logger()


@dataclass(slots=True)
class _Tally:
    since_ns: int
    count: int = 0  # since then
    total: int = 0  # in this storm
    began_ns: int = 0  # 0: there is none


@dataclass(frozen=True, slots=True)
class Ended:
    """A storm that is over."""

    kind: Kind
    total: int
    lasted_s: float


class Storms:
    """Counts, and says when it is a storm. There are few reasons and classes, so it stays small."""

    def __init__(self) -> None:
        self._tallies: dict[Kind, _Tally] = {}

    def note(self, kind: Kind, now_ns: int) -> bool:
        """One more; True: with this one a storm begins."""
        tally = self._tallies.get(kind)
        if tally is None:
            tally = self._tallies[kind] = _Tally(now_ns)
        if tally.began_ns:
            tally.count += 1
            tally.total += 1
            return False
        if now_ns - tally.since_ns >= _SECOND_NS:
            tally.since_ns, tally.count = now_ns, 0
        tally.count += 1
        if tally.count <= STORM_PER_S:
            return False
        tally.began_ns, tally.total = tally.since_ns, tally.count
        tally.since_ns, tally.count = now_ns, 0
        return True

    def look(self, now_ns: int) -> list[Ended]:
        """Those that have died down since the last look. To be called every second while one is on."""
        ended = []
        for kind, tally in self._tallies.items():
            elapsed_ns = now_ns - tally.since_ns
            if not tally.began_ns or elapsed_ns < _SECOND_NS:
                continue
            if tally.count * _SECOND_NS <= STORM_PER_S * elapsed_ns:
                ended.append(Ended(kind, tally.total, (now_ns - tally.began_ns) / 1e9))
                tally.began_ns = tally.total = 0
            tally.since_ns, tally.count = now_ns, 0
        return ended

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return any(tally.began_ns for tally in self._tallies.values())


class StormLog:
    """Writes the two lines. Belongs to the event loop."""

    def __init__(
        self, now_ns: Callable[[], int], later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        """`later` calls something after so many seconds."""
        self._storms = Storms()
        self._now_ns = now_ns
        self._later = later
        self._looking = False

    def note(self, reason: str, priority: str, origin: Origin) -> None:
        """A request was turned away or has failed."""
        if not self._storms.note((reason, priority), self._now_ns()):
            return
        log.warning(
            "refusal storm",
            reason=reason,
            priority=priority,
            more_than_per_s=STORM_PER_S,
            **origin.fields(),  # of one of them
        )
        if not self._looking:
            self._looking = True
            self._later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        for ended in self._storms.look(self._now_ns()):
            reason, priority = ended.kind
            log.warning(
                "refusal storm has ended",
                reason=reason,
                priority=priority,
                requests=ended.total,
                lasted_s=round(ended.lasted_s, 3),
            )
        self._looking = self._storms.on
        if self._looking:
            self._later(LOOK_EVERY_S, self._look)
