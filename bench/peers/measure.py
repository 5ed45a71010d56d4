"""One round: every server in turn, each with every load, and the floor between any two loads."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.bare_model import BareModel
from bench.peers import calls
from bench.peers.bare import Bare, Rows
from bench.peers.calls import METHOD, TIMEOUT_S, Checker
from bench.peers.catalog import Peer
from bench.peers.processes import PeerProcess
from client.load import generator
from client.load.arrivals import Arrivals
from client.load.flows import Flow, Load, Server
from client.load.generator import MAX_LAG_MS

CLOSED = (1, 8, 32, 64)
RATES = (300, 1000)
FLOOR_S = 0.3
WARM_UP_S = 0.5
# Of what is called before anything counts: TorchScript makes its programs for the shapes that it meets.
FIRST_IN_FLIGHT = (8, 64)
FIRST_S = 1.0
LINGER_S = 1.0
# Less than this part of what was offered has been answered in time: it cannot hold the rate.
HELD = 0.95


@dataclass(frozen=True)
class Row:
    """One load in one round: `in_flight` or `rate`, the other is 0. Floors are means of before and after.

    `held`: nothing failed, and the rate was kept. `lag_ms`: how late one send in a hundred was.
    """

    server: str
    in_flight: int
    rate: int
    answers: int
    per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    held: bool
    lag_ms: float
    floor_per_s: float
    bare_us: float


@dataclass(frozen=True)
class Start:
    """Of one server in one round; memory is that after all loads."""

    server: str
    cold_start_s: float
    memory_mib: float


def one_round(
    peers: Sequence[Peer], number: int, seconds: float, bare: Bare, right: Sequence[Rows]
) -> tuple[list[Row], list[Start]]:
    """Another server is first in each round."""
    turn = number % len(peers)
    rows: list[Row] = []
    starts = []
    for peer in [*peers[turn:], *peers[:turn]]:
        print(f"  {peer.title}", flush=True)
        more, start = _one_server(peer, number, seconds, bare, right)
        rows += more
        starts.append(start)
    return rows, starts


def _one_server(
    peer: Peer, number: int, seconds: float, bare: Bare, right: Sequence[Rows]
) -> tuple[list[Row], Start]:
    asked = calls.requests()
    port, command = peer.command()
    checker = Checker(port, asked, right)
    server = PeerProcess(command, peer.variables(), peer.grace_s)
    cold_start_s = server.start(checker.answers)
    rows = []
    try:
        checker.check_all()
        for in_flight in FIRST_IN_FLIGHT:
            _offer(port, _closed(asked, in_flight), FIRST_S, number)
        before = bare.measure(FLOOR_S)
        flows = [_closed(asked, in_flight) for in_flight in CLOSED] + [_open(asked, rate) for rate in RATES]
        for flow in flows:
            result = _offer(port, flow, seconds, number)
            after = bare.measure(FLOOR_S)
            rows.append(_row(peer.name, flow, result, before, after))
            before = after
        memory_mib = server.memory_mib()
    finally:
        server.stop()
    return rows, Start(peer.name, cold_start_s, memory_mib)


def _closed(asked: Sequence[bytes], in_flight: int) -> Flow:
    return Flow("closed", asked, in_flight=in_flight, method=METHOD, timeout_s=TIMEOUT_S)


def _open(asked: Sequence[bytes], rate: int) -> Flow:
    arrivals = Arrivals("poisson", rate)
    return Flow("open", asked, arrivals=arrivals, method=METHOD, timeout_s=TIMEOUT_S)


def _offer(port: int, flow: Flow, seconds: float, seed: int) -> generator.LoadResult:
    load = Load(Server(f"127.0.0.1:{port}"), [flow], seconds, WARM_UP_S, LINGER_S, seed)
    # It shares two cores with what it measures; what it was late by is kept, and judged by `_row`.
    return generator.run(load, max_lag_ms=float("inf"), max_cpu=float("inf"))


def _row(server: str, flow: Flow, result: generator.LoadResult, before: BareModel, after: BareModel) -> Row:
    (record,) = result.records
    p50, p99, p999 = (1e3 * (record.ms("latency", part) or 0.0) for part in (0.5, 0.99, 0.999))
    lag_ms = result.pace.lag_p99_ms or 0.0
    held = record.results > 0 and not record.failures
    if flow.arrivals is not None:
        held = held and lag_ms <= MAX_LAG_MS and record.in_time >= HELD * record.offered
    return Row(
        server,
        flow.in_flight,
        int(flow.arrivals.rate_per_s) if flow.arrivals else 0,
        record.results,
        result.per_s(record),
        p50,
        p99,
        p999,
        held,
        lag_ms,
        (before.best_windows_per_s + after.best_windows_per_s) / 2,
        (before.p50_us[1] + after.p50_us[1]) / 2,
    )
