"""Loads of the heavy model: calls of several classes side by side, whatever becomes of them.

Latency counts from the instant at which a call should have been sent, so a server, or a generator, that
falls behind cannot hide it. A refused call is not tried again.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from hdrh.histogram import HdrHistogram

from bench import heavy_model
from client.load import generator
from client.load.arrivals import Arrivals
from client.load.errors import TooSlow
from client.load.flows import STREAM, Flow, Load, Server
from client.load.generator import LoadResult
from client.load.payloads import requests
from client.priority import parse_priority
from scheduler.priority import PriorityClass

# A load whose sends were later than this, one in a hundred or more, has not offered what it says.
MAX_LAG_MS = 20.0
ATTEMPTS = 3
CAPACITY_S = 2.0
_NOBODY = "nobody"
_ROWS = np.random.default_rng(0).standard_normal((64, heavy_model.ROW)).astype(np.float32)


def flow(
    member: PriorityClass,
    timeout_s: float,
    rate_per_s: float = 0.0,
    *,
    in_flight: int = 0,
    connections: int = 1,
    model: str = "",
) -> Flow:
    """Calls of one class on RPC streams: of an open loop, or `in_flight` always.

    `model` may name one that the server does not have: such calls cost what a refusal does, and the engine
    nothing.
    """
    return Flow(
        member.label,
        requests({heavy_model.INPUT: _ROWS}, 1, model=model),
        Arrivals("poisson", rate_per_s) if rate_per_s else None,
        in_flight,
        STREAM,
        parse_priority(member.value),
        timeout_s,
        connections,
    )


def offer(
    target: str,
    flows: Sequence[Flow],
    duration_s: float,
    *,
    seed: int,
    warm_up_s: float = 0.0,
    linger_s: float = 0.0,
    on_settled: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Runs the load; what is still out `linger_s` after its end is cancelled.

    `on_settled` is called when the time that counts has begun.

    A load that was late, on a machine that others use too, is run again, `ATTEMPTS` times in all. Raises
    TooSlow when all of them were late, and LoadFailed when the generator broke.
    """
    load = Load(Server(target), flows, duration_s, warm_up_s, linger_s, seed)

    def attempt() -> LoadResult:
        settled = False

        def progress(elapsed_s: float, _results: int, _failures: int) -> None:
            nonlocal settled
            if not settled and elapsed_s >= warm_up_s:
                settled = True
                on_settled()

        return generator.run(load, on_progress=progress, max_lag_ms=MAX_LAG_MS)

    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except TooSlow:
            continue
    return attempt()


def capacity(target: str, *, refused_per_s: float = 0.0, seed: int = 0) -> float:
    """Rows per second of the heavy model, with always enough in flight for full batches.

    Beside it `refused_per_s` calls of an unknown model keep generator and front end as busy as an overload
    does: on the cores of the engine, or next to them, an overload is not free for anybody.
    """
    urgent = PriorityClass.REAL_TIME_TRADING
    flows = [flow(urgent, 10.0, in_flight=64)]
    if refused_per_s:
        flows.append(flow(urgent, 10.0, refused_per_s, model=_NOBODY))
    result = offer(target, flows, CAPACITY_S, seed=seed, warm_up_s=0.5)
    return result.goodput_per_s(result.records[0])


def distribution(of: HdrHistogram) -> Iterator[tuple[float, int]]:
    """Milliseconds, ascending, and how often each was recorded."""
    for step in of.get_recorded_iterator():
        yield step.value_iterated_to / 1e3, step.count_at_value_iterated_to
