"""A short campaign. `make fuzz` runs a hundred thousand messages."""

import asyncio
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests.e2e.calls import PATIENCE_S, unary, window_request
from tests.e2e.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, RawConnection, block, frame
from tests.e2e.service import BUNDLED, Service
from tests.fuzz.campaign import Order, run
from tests.fuzz.corpus import rpcs
from tests.fuzz.raw import SCRIPTS, good_message
from tests.fuzz.tokens import AUTHORIZATION
from tests.fuzz.world import World, log_problems

# Seconds, not minutes. The seed turns no bit that makes a path anything but UTF-8: see the last test.
ORDER = Order(messages=3000, connections=100, seed=20260101)
# From this version of grpcio on, a path that is no UTF-8 ends its server.
FRAGILE_SINCE = (1, 84)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def services(target: str) -> set[str]:
    """By the server's own word."""
    async with grpc.aio.insecure_channel(target) as channel:
        rpc: Any = channel.stream_stream(
            REFLECTION,
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = [answer async for answer in rpc(asked, timeout=PATIENCE_S, metadata=(AUTHORIZATION,))]
    return {service.name for service in answer.list_services_response.service}


@pytest.mark.slow
def test_nothing_breaks_whatever_is_sent() -> None:
    """Every call ends as it may, the good caller is served, and nothing is left behind."""
    with World() as world:
        served = asyncio.run(services(world.target))
        report = run(world, ORDER)
    assert served == {rpc.path.split("/")[1] for rpc in rpcs()}
    assert report.problems == []
    assert report.account.messages == ORDER.messages
    # All of it was tried, and not all of it was refused.
    assert {name for name, _ in report.peers.ends} == set(SCRIPTS)
    assert {path for path, _ in report.account.ends} == {rpc.path for rpc in rpcs()}
    for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL NON_FINITE_OUTPUT", "UNAUTHENTICATED"):
        assert report.codes[code] > 0, report.codes
    answers = report.witness["answers"]
    assert isinstance(answers, dict)
    assert len(answers) == 4
    assert min(answers.values()) > 0


def test_lines_that_tell_of_a_bug_are_found() -> None:
    """However they come to be in the log."""
    good = {"event": "ready", "level": "info"}
    gone = [
        "Traceback (most recent call last):",
        '  File "src/python/grpcio/grpc/_cython/_cygrpc/aio/server.pyx.pxi", line 729, in _handle_exceptions',
        'grpc._cython.cygrpc.ExecuteBatchError: Failed "execute_batch": (...)',
    ]
    bad = [
        {"event": "cannot deliver completions", "level": "error"},
        {"event": "an RPC has failed", "level": "warning", "exception": "ValueError"},
        {"event": "Task exception was never retrieved"},
        {"event": "E1121 hpack_parser.cc:1031] Error parsing 'x"},
        {"event": gone[0]},
        {"event": '  File "server/guard.py", line 1, in behaviour'},
    ]
    accepted = [good, *({"event": line} for line in gone)]
    assert log_problems(accepted) == []
    assert len(log_problems([*accepted, *bad])) == len(bad)


@pytest.mark.skipif(
    tuple(map(int, version("grpcio").split(".")[:2])) < FRAGILE_SINCE, reason="the next test holds"
)
async def test_path_that_is_no_text_costs_a_front_end() -> None:
    """And no more than that: another one serves at once."""
    service = Service(settings=BUNDLED).ready()
    try:
        async with await RawConnection.open(service.target) as connection:
            await connection.send(frame(HEADERS, END_HEADERS, 1, _no_text()))
            service.wait_for("front end serves again")
        async with grpc.aio.insecure_channel(service.target) as channel:
            assert (await unary(channel, window_request())).code is grpc.StatusCode.OK
        service.stop()
    finally:
        service.kill()


@pytest.mark.xfail(
    tuple(map(int, version("grpcio").split(".")[:2])) >= FRAGILE_SINCE,
    reason="grpc.aio decodes the path in the loop that accepts calls",
    strict=True,
)
async def test_path_that_is_no_text_ends_its_call_alone() -> None:
    """It is no method, and the server goes on."""
    service = Service(settings=BUNDLED).ready()
    try:
        async with await RawConnection.open(service.target) as connection:
            await connection.send(
                frame(HEADERS, END_HEADERS, 1, _no_text()), frame(DATA, END_STREAM, 1, good_message())
            )
            assert await connection.until(HEADERS) is not None
        async with grpc.aio.insecure_channel(service.target) as channel:
            assert (await unary(channel, window_request())).code is grpc.StatusCode.OK
        service.stop()
    finally:
        service.kill()


def _no_text() -> bytes:
    """The headers of a call whose path is not UTF-8."""
    good = block((":method", "POST"), (":scheme", "http"), ("content-type", "application/grpc"))
    return good + block((":authority", "x"), ("te", "trailers")) + b"\x00\x05:path\x04/a/\xff"
