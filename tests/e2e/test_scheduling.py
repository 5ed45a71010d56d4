"""Promises of the scheduler, kept by a real server: deadlines, faults, hangs, settings that change."""

import asyncio
import json
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.calls import Ending, RpcStream, request, streamed, tensor, unary, window_request
from tests.e2e.service import BUNDLED, Service, pause
from tickring.v1 import inference_pb2, types_pb2

Code = grpc.StatusCode
Launch = Callable[..., Service]
URGENT = types_pb2.PRIORITY_REAL_TIME_TRADING
NORMAL = types_pb2.PRIORITY_BATCH_PROCESSING
BACKGROUND = types_pb2.PRIORITY_BACKGROUND_TASKS


def touchy(*values: float) -> inference_pb2.PredictRequest:
    """One row each; a row of more than 250 makes the model raise."""
    return request("touchy", tensor("x", [[value] * 4 for value in values]))


def books(port: int) -> dict[str, Any]:
    """What `/status` says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
        status: dict[str, Any] = json.load(answer)
    return status


@pytest.fixture(scope="module")
def picky(launch: Launch, zoo_repository: Path) -> Service:
    """The zoo, whose models take bad rows, in one batch of up to 8."""
    return launch(
        "--models",
        str(zoo_repository),
        settings={
            "TICKRING_SERVER__FRONTENDS": "1",
            "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "8",
            "TICKRING_SCHEDULER__ADAPTIVE": "false",
        },
    ).ready()


async def test_only_the_guilty_of_a_batch_fail(picky: Service) -> None:
    """Eight calls meet in one batch, two of them poisoned: those two fail, six get their own results."""
    async with grpc.aio.insecure_channel(picky.target) as channel:
        values = [1.0, 2.0, 900.0, 3.0, 4.0, 5.0, 901.0, 6.0]
        with picky.paused():
            calls = [asyncio.create_task(unary(channel, touchy(value))) for value in values]
            await _admitted(picky, 8)
        endings = await asyncio.gather(*calls)
    for value, ending in zip(values, endings, strict=True):
        if value > 250:
            assert (ending.code, ending.reason) == (Code.INTERNAL, "MODEL_ERROR")
        else:
            assert _first_output(ending) == 2 * value
    line = picky.wait_for("batch failed", items=8)
    assert (line["guilty"], line["undecided"]) == (2, 0)


async def test_input_that_keeps_failing_is_refused_for_a_while(picky: Service) -> None:
    """The model is spared the third time; other inputs are not concerned."""
    async with grpc.aio.insecure_channel(picky.target) as channel:
        for _ in range(2):
            ending = await unary(channel, touchy(777.0))
            assert "failed on this request" in ending.message
        refused = await unary(channel, touchy(777.0))
        assert (refused.code, refused.reason) == (Code.INTERNAL, "MODEL_ERROR")
        assert "refused for" in refused.message
        assert _first_output(await unary(channel, touchy(7.0))) == 14


async def test_what_cannot_be_done_in_time_is_refused_at_the_door(bundled: Service) -> None:
    """With 200 windows queued before it, a millisecond is not enough; the 200 are served."""
    async with grpc.aio.insecure_channel(bundled.target) as channel:
        stream = RpcStream(channel)
        with bundled.paused():
            await stream.send(*[streamed(i, window_request(priority=URGENT)) for i in range(1, 201)], b"\xff")
            sequence, marker = await stream.answer()
            assert (sequence, marker.code) == (0, Code.INVALID_ARGUMENT)
            tight = window_request(priority=URGENT)
            tight.timeout.FromMilliseconds(1)
            refused = await unary(channel, tight)
        assert (refused.code, refused.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
        assert "this would be done in" in refused.message
        await stream.half_close()
        answers, _ = await stream.rest()
        assert len(answers) == 200


async def test_bulk_that_is_held_back_ends_at_once_when_cancelled(launch: Launch) -> None:
    """Far more bulk than its slack has room for: held at the entrance, cancelled there, all books closed."""
    # However slow the machine: the engine that the test pauses shall not be taken for one that hangs.
    settings = {"TICKRING_EXECUTOR__STALL_TIMEOUT_S": "60"}
    settings["TICKRING_SERVER__MAX_IN_FLIGHT_PER_STREAM"] = "1000"
    service = launch(settings=BUNDLED | settings).ready()
    port = _http_port(service)
    async with grpc.aio.insecure_channel(service.target) as channel:
        stream = RpcStream(channel)
        with service.paused():
            await stream.send(*[streamed(i, window_request(priority=NORMAL)) for i in range(1, 901)], b"\xff")
            sequence, marker = await stream.answer()
            assert (sequence, marker.code) == (0, Code.INVALID_ARGUMENT)
            assert 1 <= _queued_bulk(port) < 900, "the lanes hold no more bulk than is taken within its slack"
            stream.call.cancel()
            # What was held has ended though the engine stands still. Its account lets some into the lanes
            # until the cancellation arrives, so the lanes are counted after it, not before.
            await _until(lambda: _cancelled(port) + _queued_bulk(port) >= 900)
            assert _queued_bulk(port) < 900
        await _until(lambda: books(port)["frontends"][0]["open"] == 0)
    ended = books(port)["frontends"][0]["ended"]
    assert ended["cancelled"] + ended["result"] == 900
    service.stop()


def _queued_bulk(port: int) -> int:
    """Items of the class batch_processing in the lanes of the bundled model."""
    return int(books(port)["engines"][0]["models"][0]["queued"]["batch_processing"])


def _cancelled(port: int) -> int:
    """Items that ended so at the one front end."""
    return int(books(port)["frontends"][0]["ended"]["cancelled"])


async def test_engine_that_hangs_is_replaced(launch: Launch) -> None:
    """Its pid is there, its progress is not: what waits for it ends UNAVAILABLE, and another one serves."""
    service = launch(settings=BUNDLED | {"TICKRING_EXECUTOR__STALL_TIMEOUT_S": "0.5"}).ready()
    async with grpc.aio.insecure_channel(service.target) as channel:
        assert (await unary(channel, window_request())).code is Code.OK
        with service.paused():
            ending = await unary(channel, window_request())
            assert (ending.code, ending.reason) == (Code.UNAVAILABLE, "ENGINE_LOST")
        service.wait_for("child makes no progress, killing it", child="engine-0")
        await _until_answered(channel, Code.OK)
    assert books(_http_port(service))["restarts"]["engine-0"] == 1
    service.stop()


async def test_front_end_that_hangs_is_replaced(launch: Launch) -> None:
    """Completions wait for it and it does not fetch them; its clients see the connection drop."""
    service = launch(settings=BUNDLED | {"TICKRING_EXECUTOR__STALL_TIMEOUT_S": "0.5"}).ready()
    async with grpc.aio.insecure_channel(service.target) as channel:
        with service.paused("engine-0"):
            call = asyncio.create_task(unary(channel, window_request()))
            await _until(lambda: books(_http_port(service))["engines"][0]["waiting"] == 1)
            pause(service.pid("frontend-0"))
        ending = await call
        assert ending.code is Code.UNAVAILABLE
        service.wait_for("child makes no progress, killing it", child="frontend-0")
    async with grpc.aio.insecure_channel(service.target) as channel:
        await _until_answered(channel, Code.OK)
    service.stop()


async def test_waiting_for_company_is_no_hang(launch: Launch, zoo_repository: Path) -> None:
    """An item may wait for a batch to fill for longer than the stall timeout."""
    settings = zoo.SETTINGS | {
        "TICKRING_EXECUTOR__STALL_TIMEOUT_S": "0.5",
        "TICKRING_SCHEDULER__CLASSES__BACKGROUND_TASKS__MAX_WAIT_MS": "1500",
    }
    service = launch("--models", str(zoo_repository), settings=settings).ready()
    async with grpc.aio.insecure_channel(service.target) as channel:
        message = request("doubler", tensor("x", [[1, 2, 3, 4]]), priority=BACKGROUND)
        ending = await unary(channel, message)
        assert ending.response.timing.queue_wait_ns >= 1_400_000_000
    assert books(_http_port(service))["restarts"] == {"engine-0": 0, "frontend-0": 0}
    service.stop()


async def test_settings_file_is_taken_up_by_sighup(launch: Launch, tmp_path: Path) -> None:
    """Good settings are taken up everywhere, bad ones nowhere; new engines take over where it needs them."""
    config = tmp_path / "tickring.toml"
    config.write_text("")
    service = launch("--config", str(config), settings=BUNDLED).ready()
    async with grpc.aio.insecure_channel(service.target) as channel:
        assert (await unary(channel, window_request(priority=NORMAL))).code is Code.OK

        config.write_text("[scheduler.classes.batch_processing]\nqueue_limit = 2\nslack_ms = 40")
        service.signal(signal.SIGHUP)
        service.wait_for("settings changed", version=2)
        with service.paused():
            filling = asyncio.create_task(unary(channel, window_request(rows=2, priority=NORMAL)))
            async with asyncio.timeout(40):
                while await asyncio.to_thread(_open_items, service) < 2:
                    pass
            refused = await _until_answered(channel, Code.RESOURCE_EXHAUSTED, rows=1, priority=NORMAL)
            assert "2 of 2 are taken" in refused.message
        assert (await filling).code is Code.OK

        config.write_text("[scheduler.classes.batch_processing]\nslack_ms = -1")
        service.signal(signal.SIGHUP)
        line = service.wait_for("settings not reloaded, nothing was changed")
        assert "slack_ms" in line["problems"][0]

        logged = len(service.logged())
        config.write_text("[server]\nfrontends = 1\nmax_message_bytes = 2048")
        service.signal(signal.SIGHUP)
        line = service.wait_for("settings not reloaded, nothing was changed", after=logged)
        assert "server.max_message_bytes" in line["problems"][0]

        config.write_text("[scheduler]\nmax_batch_size = 8")
        service.signal(signal.SIGHUP)
        service.wait_for("settings changed", version=3)
        service.wait_for("engine has retired")
        answer = await unary(channel, window_request(rows=20, priority=URGENT, timeout={"seconds": 30}))
        assert answer.response.timing.batch_bucket <= 8
    service.stop()


async def test_status_tells_books_and_predictions(bundled: Service) -> None:
    """Everything admitted has ended, and every bucket has a prediction that grows with it."""
    async with grpc.aio.insecure_channel(bundled.target) as channel:
        assert (await unary(channel, window_request())).code is Code.OK
    status = books(_http_port(bundled))
    (frontend,) = status["frontends"]
    assert frontend["admitted"] == sum(frontend["ended"].values()) > 0
    (engine,) = status["engines"]
    assert engine["taken"] == engine["completed"] + engine["lost"]
    model = engine["models"][0]
    medians = [row["median"] for row in model["latency_ms"].values()]
    assert medians == sorted(medians)
    assert medians[0] > 0
    assert str(model["target_batch"]) in model["latency_ms"]


def _first_output(ending: Ending) -> float:
    (output, *_) = ending.response.outputs
    return float(memoryview(output.data).cast("f")[0])


def _http_port(service: Service) -> int:
    url: str = service.wait_for("ready")["status"]
    return int(url.removesuffix("/status").rpartition(":")[2])


async def _admitted(service: Service, items: int) -> None:
    port = _http_port(service)
    await _until(lambda: books(port)["engines"][0]["waiting"] == items)


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(true):
            pass


def _open_items(service: Service) -> int:
    (frontend,) = books(_http_port(service))["frontends"]
    return int(frontend["open"])


async def _until_answered(channel: grpc.aio.Channel, code: Code, **fields: Any) -> Ending:
    async with asyncio.timeout(40):
        while (ending := await unary(channel, window_request(**fields))).code is not code:
            pass
        return ending
