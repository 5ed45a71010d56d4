"""What a front end adds to gRPC: a request in and its answer out, without the engine's part in between."""

import socket

from bench.conftest import Gate
from bench.frontend_path import CALLS, FrontendPath, copy_us, floor_us, raw_request
from server.settings import Settings
from server.telemetry.tracer import Tracer

ROUNDS = 10
# Of 3 ms each: a core keeps another clock for longer than a few of those.
COPY_ROUNDS = 100


def test_one_request(gate: Gate) -> None:
    """In and out of a front end, everything but gRPC."""
    raw, path = raw_request(), FrontendPath()
    gate.check("frontend_request", *((path.median_us(raw), floor_us(raw)) for _ in range(ROUNDS)))
    assert path.answers == CALLS * ROUNDS
    path.close()


def test_tracing(gate: Gate) -> None:
    """One request in a hundred is traced, none for being slow."""
    raw = raw_request()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    settings = Settings.model_validate(
        {"telemetry": {"trace_sample_ratio": 0.01}, "slo": {"p99_ms": 3_600_000}}
    )
    plain, traced = FrontendPath(), FrontendPath(Tracer(ours, 0, 1, settings))
    rounds = []
    for _ in range(ROUNDS):
        without = plain.median_us(raw)
        rounds.append((traced.median_us(raw), without))
        _drain(theirs)
    gate.check("tracing", *rounds)
    for path in (plain, traced):
        path.close()
    ours.close()
    theirs.close()


def test_copy(gate: Gate) -> None:
    """A window goes into its slot by one copy."""
    gate.check("write_input", *(copy_us() for _ in range(COPY_ROUNDS)))


def _drain(records: socket.socket) -> None:
    records.setblocking(False)
    try:
        while records.recv(1 << 16):
            pass
    except BlockingIOError:
        return
