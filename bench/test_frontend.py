"""What a front end adds to gRPC: a request in and its answer out, without the engine's part in between."""

import socket

from bench.conftest import Gate
from bench.frontend_path import CALLS, ROUNDS, FrontendPath, copy_rounds, raw_request, request_rounds
from server.settings import Settings
from server.telemetry.tracer import Tracer


def test_one_request(gate: Gate) -> None:
    """In and out of a front end, everything but gRPC."""
    path = FrontendPath()
    gate.check("frontend_request", *request_rounds(path))
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
    gate.check("write_input", *copy_rounds())


def _drain(records: socket.socket) -> None:
    records.setblocking(False)
    try:
        while records.recv(1 << 16):
            pass
    except BlockingIOError:
        return
