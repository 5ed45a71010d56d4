"""Whether callers get answers, and in time: tried with a real prediction of every model by every front end.

Healthy: all are answered within `slo.p99_ms`. Degraded: all are answered, but slowly, or by fewer processes
than there should be, or a model cannot do with zeros. Unhealthy: a caller would not be answered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.clock import Clock, MonotonicClock

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"
# Of all predictions of one check together.
TIMEOUT_S = 3.0
# Whoever asks within this time gets the same answer.
KEPT_NS = 1_000_000_000

Try = Callable[[float], Awaitable[Mapping[str, list[dict[str, Any]] | None]]]


class Service(Protocol):
    """What is checked."""

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        ...

    def missing(self) -> Sequence[str]:
        """Processes that should serve and do not."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check has found.

    Attributes:
        state: HEALTHY, DEGRADED or UNHEALTHY.
        reasons: for people, none where it is healthy.
        predictions: by front end and model, see `server.rpc.trial.try_models`.
    """

    state: str
    reasons: tuple[str, ...]
    predictions: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": self.state,
            "reasons": list(self.reasons),
            "predictions": [dict(prediction) for prediction in self.predictions],
        }


class DeepHealth:
    """Checks when asked: one check at a time, whoever comes meanwhile waits for it."""

    def __init__(
        self,
        service: Service,
        try_models: Try,
        p99_ms: Callable[[], float],
        clock: Clock | None = None,
    ) -> None:
        """`try_models`: see `Trials.run`; `p99_ms`: from when on an answer is slow."""
        self._service = service
        self._try_models = try_models
        self._p99_ms = p99_ms
        self._clock = clock or MonotonicClock()
        self._checking: asyncio.Task[Verdict] | None = None
        self._checked_ns = 0

    async def check(self) -> Verdict:
        """The verdict of now, or of a moment ago."""
        running = self._checking
        stale = running is None or (running.done() and self._clock.now_ns() - self._checked_ns >= KEPT_NS)
        if running is None or stale:
            running = self._checking = asyncio.create_task(self._check())
        # Shielded: others wait for it too.
        return await asyncio.shield(running)

    async def _check(self) -> Verdict:
        tried: Mapping[str, list[dict[str, Any]] | None] = {}
        if self._service.is_ready:
            tried = await self._try_models(TIMEOUT_S)
        self._checked_ns = self._clock.now_ns()
        return judge(tried, self._service.is_ready, self._service.missing(), self._p99_ms())


def judge(
    tried: Mapping[str, list[dict[str, Any]] | None],
    is_ready: bool,
    missing: Sequence[str],
    p99_ms: float,
) -> Verdict:
    """What the predictions and the processes mean. See `Trials.run` for `tried`."""
    predictions = [
        {"frontend": frontend, **prediction}
        for frontend, found in tried.items()
        for prediction in found or ()
    ]
    failed = [] if is_ready else ["the service is not ready"]
    failed += [f"{frontend} has not answered" for frontend, found in tried.items() if found is None]
    worse = [f"{name} does not serve" for name in missing]
    if is_ready and not predictions and not failed:
        worse.append("no model is loaded")
    for each in predictions:
        named = f"{each['model_name']} version {each['model_version']} on {each['frontend']}"
        if each["error"] and not each["by_model"]:
            failed.append(f"{named}: {each['error']}")
        elif each["error"]:
            worse.append(f"{named} fails on zeros: {each['error']}")
        elif each["ms"] > p99_ms:
            worse.append(f"{named} took {each['ms']:.3g} ms, slo.p99_ms is {p99_ms:g}")
    state = UNHEALTHY if failed else DEGRADED if worse else HEALTHY
    return Verdict(state, (*failed, *worse), tuple(predictions))
