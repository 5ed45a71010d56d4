"""One service with two engines, each in a process of its own, while one of them is not there."""

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import PATIENCE_S, Ending, RpcStream, request, streamed, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.service import Service, pause, run_server
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
ENGINES = ("engine-0", "engine-1")
SLOTS = 128
CALLS = 60
SETTINGS = {
    "TICKRING_EXECUTOR__DEVICE": "cpu,cpu",
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": str(SLOTS),
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "4",
    "TICKRING_SCHEDULER__ADAPTIVE": "false",
    # An engine that a test pauses shall not be taken for one that hangs, nor a deadline pass meanwhile.
    "TICKRING_EXECUTOR__STALL_TIMEOUT_S": "60",
    "TICKRING_SCHEDULER__EARLY_REFUSAL": "false",
    "TICKRING_SCHEDULER__CLASSES__REAL_TIME_TRADING__DEFAULT_TIMEOUT_MS": "60000",
}


def doubler(value: float) -> inference_pb2.PredictRequest:
    """One row of an urgent class, so that nothing is held and nothing waits for company."""
    values = tensor("x", [[value] * 4])
    return request("doubler", values, priority=types_pb2.PRIORITY_REAL_TIME_TRADING)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.build(tmp_path_factory.mktemp("several"), "doubler")


@pytest.fixture(scope="module")
def pair(launch: Launch, repository: Path) -> Iterator[Service]:
    """Two engines; every test leaves both of them ready."""
    service = launch("--models", str(repository), settings=SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def channel(pair: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(pair.target) as channel:
        yield channel


@contextmanager
def paused(service: Service, *children: str) -> Iterator[None]:
    """Stops them all while the context lasts."""
    with ExitStack() as stack:
        for child in children:
            stack.enter_context(service.paused(child))
        yield


def http(service: Service, path: str) -> tuple[int, bytes]:
    """Status and body of an HTTP probe."""
    url: str = service.wait_for("ready")["status"]
    try:
        with urllib.request.urlopen(url.removesuffix("/status") + path, timeout=PATIENCE_S) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""


def books(service: Service) -> dict[str, Any]:
    """What `/status` says."""
    status: dict[str, Any] = json.loads(http(service, "/status")[1])
    return status


def of_engines(service: Service, field: str) -> list[int]:
    """One number of each engine's books."""
    return [int(engine[field]) for engine in books(service)["engines"]]


async def until(condition: Callable[[], bool]) -> None:
    """Polls what has no event to await."""

    def poll() -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s"
            time.sleep(0.01)

    await asyncio.to_thread(poll)


async def send(service: Service, channel: grpc.aio.Channel, count: int = CALLS) -> list[asyncio.Task[Ending]]:
    """So many calls at once to engines that stand still; returns once all are queued."""
    before = sum(of_engines(service, "waiting"))
    calls = [asyncio.create_task(unary(channel, doubler(value))) for value in range(count)]
    await until(lambda: sum(of_engines(service, "waiting")) == before + count)
    return calls


async def check_answers(calls: Sequence[asyncio.Task[Ending]]) -> None:
    """All of them, each with its own."""
    for value, ending in enumerate(await asyncio.gather(*calls)):
        (output,) = ending.response.outputs
        assert memoryview(output.data).cast("f").tolist() == [2 * value] * 4


def kill(service: Service, child: str) -> int:
    """kill -9; returns how much had been logged before."""
    seen = len(service.logged())
    os.kill(service.pid(child), signal.SIGKILL)
    return seen


async def settled(service: Service) -> dict[str, Any]:
    """The books once nothing is under way any more: every item has ended, every slot is free."""
    await until(
        lambda: books(service)["frontends"][0]["open"] == 0 and not any(of_engines(service, "waiting"))
    )
    status = books(service)
    assert status["frontends"][0]["slots_free"] == SLOTS
    for engine in status["engines"]:
        assert engine["taken"] == engine["completed"] + engine["lost"]
        assert engine["corrupt"] == 0
    return status


async def test_both_engines_get_work(pair: Service, channel: grpc.aio.Channel) -> None:
    """Neither much more than the other; and the service says what it runs on."""
    assert pair.wait_for("ready")["engines"] == ["cpu", "cpu"]
    assert [(engine["name"], engine["device"]) for engine in books(pair)["engines"]] == [
        ("engine-0", "cpu"),
        ("engine-1", "cpu"),
    ]
    before = of_engines(pair, "completed")
    with paused(pair, *ENGINES):
        calls = await send(pair, channel)
        waiting = of_engines(pair, "waiting")
    # By what they measured of themselves, which differs on a machine that others use too.
    assert min(waiting) >= CALLS / 10, waiting
    await check_answers(calls)
    await settled(pair)
    assert [now - then for now, then in zip(of_engines(pair, "completed"), before, strict=True)] == waiting


async def test_one_engine_dies_and_the_other_goes_on(pair: Service, channel: grpc.aio.Channel) -> None:
    """Only what the dead one held is lost. The service stays ready, and has two engines again soon."""
    with paused(pair, "engine-1"):
        with paused(pair, "engine-0"):
            calls = await send(pair, channel)
            held = of_engines(pair, "waiting")
            seen = kill(pair, "engine-0")
        await until(lambda: sum(call.done() for call in calls) == held[0])
        # The other one still stands still.
        lost = [call.result() for call in calls if call.done()]
        assert [(ending.code, ending.reason) for ending in lost] == [
            (Code.UNAVAILABLE, "ENGINE_LOST")
        ] * held[0]
        successor = pair.wait_for("spawned", after=seen, child="engine-0")["pid"]
        pause(successor)
    try:
        others = await asyncio.gather(*calls)
        assert Counter(ending.code for ending in others) == {Code.UNAVAILABLE: held[0], Code.OK: held[1]}
        await check_answers([asyncio.create_task(unary(channel, doubler(value))) for value in range(CALLS)])
        health = await unary(channel, b"", method="/grpc.health.v1.Health/Check")
        assert health.raw == b"\x08\x01", "SERVING"
        assert (http(pair, "/readyz")[0], of_engines(pair, "waiting")) == (200, [0, 0])
        assert of_engines(pair, "ready") == [False, True]
    finally:
        os.kill(successor, signal.SIGCONT)
    pair.wait_for("engine serves again", after=seen, child="engine-0")
    await until_both_work(pair, channel)
    assert books(pair)["restarts"] == {"engine-0": 1, "engine-1": 0, "frontend-0": 0}


async def until_both_work(service: Service, channel: grpc.aio.Channel) -> None:
    """The front end hears of an engine a moment after others do."""
    async with asyncio.timeout(PATIENCE_S):
        waiting = [0, 0]
        while min(waiting) == 0:
            with paused(service, *ENGINES):
                calls = await send(service, channel)
                waiting = of_engines(service, "waiting")
            await check_answers(calls)
    await settled(service)


async def test_calls_under_load_end_whatever_dies(pair: Service, channel: grpc.aio.Channel) -> None:
    """Callers that never stop, while each engine is killed once: a status for every call, and soon."""
    statuses: Counter[str] = Counter()
    slowest_s = 0.0
    stopping = False

    async def caller() -> None:
        nonlocal slowest_s
        while not stopping:
            started_s = time.monotonic()
            ending = await unary(channel, doubler(1))
            slowest_s = max(slowest_s, time.monotonic() - started_s)
            statuses[ending.code.name if ending.code is Code.OK else ending.reason] += 1
            await asyncio.sleep(0.01)  # the load is bounded: others use this machine

    callers = [asyncio.create_task(caller()) for _ in range(12)]
    for engine in ENGINES:
        await until(lambda: statuses["OK"] > 50)
        seen = kill(pair, engine)
        await asyncio.to_thread(pair.wait_for, "spawned", after=seen, child=engine)
        statuses["OK"] = 0
        await until(lambda: statuses["OK"] > 50)
        await asyncio.to_thread(pair.wait_for, "engine serves again", after=seen, child=engine)
    stopping = True
    await asyncio.gather(*callers)
    assert statuses.keys() <= {"OK", "ENGINE_LOST"}, statuses
    assert slowest_s < PATIENCE_S
    await settled(pair)
    await until_both_work(pair, channel)


async def test_front_end_dies_with_items_at_both_engines(pair: Service) -> None:
    """Its slots are free again once both have let go of them; one that stands still keeps them."""
    async with grpc.aio.insecure_channel(pair.target) as channel:
        with paused(pair, "engine-0"):
            with paused(pair, "engine-1"):
                calls = await send(pair, channel)
                held = of_engines(pair, "waiting")
                seen = kill(pair, "frontend-0")
                endings = await asyncio.gather(*calls)
                assert {ending.code for ending in endings} == {Code.UNAVAILABLE}
                pair.wait_for("spawned", after=seen, child="frontend-0")
            await until(lambda: of_engines(pair, "waiting") == [held[0], 0])
            assert books(pair)["frontends"][0]["open"] == CALLS
            assert http(pair, "/readyz")[0] == 503
    await until(lambda: http(pair, "/readyz")[0] == 200)
    status = await settled(pair)
    assert status["frontends"][0]["ended"]["lost"] >= CALLS
    async with grpc.aio.insecure_channel(pair.target) as channel:
        await until_both_work(pair, channel)


async def test_without_any_engine_calls_are_refused(pair: Service, channel: grpc.aio.Channel) -> None:
    """As with one; the first that is back serves alone."""
    successors = []
    with contextlib.ExitStack() as stack:
        for engine in ENGINES:
            seen = kill(pair, engine)
            successors.append(pair.wait_for("spawned", after=seen, child=engine)["pid"])
            pause(successors[-1])
            stack.callback(os.kill, successors[-1], signal.SIGCONT)
        await until(lambda: http(pair, "/readyz")[0] == 503)
        ending = await until_ended(channel, Code.UNAVAILABLE)
        assert (ending.reason, ending.message) == ("ENGINE_RESTARTING", "the engine is restarting")
        os.kill(successors[1], signal.SIGCONT)
        await until_ended(channel, Code.OK)
        assert http(pair, "/readyz")[0] == 200
    pair.wait_for("engine serves again", after=seen, child="engine-0")
    await until_both_work(pair, channel)


async def until_ended(channel: grpc.aio.Channel, code: Code) -> Ending:
    """Calls until one ends like this."""
    async with asyncio.timeout(PATIENCE_S):
        while (ending := await unary(channel, doubler(1))).code is not code:
            pass
        return ending


async def test_an_engine_that_cannot_start_again_leaves_the_other_alone(
    pair: Service, channel: grpc.aio.Channel, repository: Path
) -> None:
    """Its model's file has been changed: it tries for ever, less and less often, until that is mended."""
    file = repository / "doubler" / "1" / "model.pt"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"!")
    try:
        seen = kill(pair, "engine-0")
        for _ in range(4):  # more often than before the service was announced
            await asyncio.to_thread(pair.wait_for, "child died", after=seen, child="engine-0", code=3)
            seen = len(pair.logged())
            await check_answers([asyncio.create_task(unary(channel, doubler(value))) for value in range(5)])
            assert http(pair, "/readyz")[0] == 200
    finally:
        file.write_bytes(good)
    await asyncio.to_thread(pair.wait_for, "engine serves again", after=seen, child="engine-0")
    await until_both_work(pair, channel)


def test_an_engine_that_never_starts_ends_the_service(repository: Path) -> None:
    """Before the service was ever ready one is enough; the second has a GPU that is not there."""
    done = run_server(
        ["--models", str(repository), "--device", "cpu,cuda:99", "--grpc-port", "0", "--http-port", "0"]
    )
    assert done.returncode == 1
    assert "engine-1" in done.stderr


async def test_drain_answers_what_either_engine_has(launch: Launch, repository: Path) -> None:
    """SIGTERM while both have work: all of it is answered, and the server is gone."""
    service = launch("--models", str(repository), settings=SETTINGS).ready()
    async with grpc.aio.insecure_channel(service.target) as channel:
        stream = RpcStream(channel)
        with paused(service, *ENGINES):
            await stream.send(*[streamed(number, doubler(number)) for number in range(CALLS)])
            await until(lambda: sum(of_engines(service, "waiting")) == CALLS)
            assert min(of_engines(service, "waiting")) > 0
            service.signal(signal.SIGTERM)
            service.wait_for("draining")
        answers, end = await stream.rest()
        assert (end.code, end.reason) == (Code.UNAVAILABLE, "DRAINING")
        assert {number: ending.code for number, ending in answers} == dict.fromkeys(range(CALLS), Code.OK)
    # Far from the 30 s of grace.
    assert await asyncio.to_thread(service.wait, 15.0) == 0
    assert service.check_ends() == CALLS


async def test_front_end_that_does_not_let_go_of_a_lost_engine_is_replaced(
    launch: Launch, repository: Path
) -> None:
    """It stands still with nothing to do; but the rings of the dead engine cannot be reset without it."""
    settings = SETTINGS | {"TICKRING_EXECUTOR__STALL_TIMEOUT_S": "2"}
    service = launch("--models", str(repository), settings=settings).ready()
    pause(service.pid("frontend-0"))
    seen = kill(service, "engine-0")
    service.wait_for("child makes no progress, killing it", after=seen, child="frontend-0")
    service.wait_for("engine serves again", after=seen, child="engine-0")
    await until(lambda: http(service, "/readyz")[0] == 200)
    assert books(service)["restarts"] == {"engine-0": 1, "engine-1": 0, "frontend-0": 1}
    async with grpc.aio.insecure_channel(service.target) as channel:
        await check_answers([asyncio.create_task(unary(channel, doubler(value))) for value in range(CALLS)])
    service.stop()
