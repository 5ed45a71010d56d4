"""The whole service on a GPU: it answers, survives the death of its engine, and drains."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from google.protobuf.duration_pb2 import Duration

from scheduler.executor.parity import errors
from scheduler.executor.runner import DeviceModel, DeviceSettings, load_model
from scheduler.signature import ModelSignature
from server.repository import load_repository, read_verified
from server.settings import bundled_repository
from tests.e2e.calls import RpcStream, array, request, streamed, tensor, unary, window_request, windows
from tests.e2e.service import BUNDLED, Service
from tickring.v1 import inference_pb2, types_pb2

DEVICE = "cuda:0"
Code = grpc.StatusCode
CALLS = 64
PATIENT = Duration(seconds=30)
REAL_TIME = types_pb2.PRIORITY_REAL_TIME_TRADING
# A new engine loads torch, creates a context and captures every graph again.
RECOVERY_S = 90.0

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def start() -> Service:
    return Service("--device", DEVICE, settings=BUNDLED)


@pytest.fixture
def service() -> Iterator[Service]:
    service = start()
    try:
        yield service.ready()
    finally:
        service.kill()


def reference() -> tuple[DeviceModel, ModelSignature]:
    """The bundled model on the CPU."""
    (manifest,) = load_repository(bundled_repository()).manifests
    signature = manifest.signature(manifest.latest.version)
    return load_model(manifest.format, read_verified(manifest.latest), signature, DeviceSettings()), signature


def request_of(rows: npt.NDArray[np.float32]) -> inference_pb2.PredictRequest:
    return request("sp500_direction", tensor("window", rows), timeout=PATIENT)


async def test_answers_are_those_of_the_cpu(service: Service) -> None:
    """One row, some, and more than fit a batch; alone and many at a time."""
    model, signature = reference()
    async with grpc.aio.insecure_channel(service.target) as channel:
        requests = [windows(rows, seed=rows) for rows in (1, 5, 64, 200, *[1] * CALLS)]
        endings = await asyncio.gather(*[unary(channel, request_of(rows)) for rows in requests])
    for rows, ending in zip(requests, endings, strict=True):
        wanted = [output.numpy() for output in model.forward([torch.from_numpy(rows)])]
        answer = [array(output) for output in ending.response.outputs]
        found = errors(signature, wanted, answer)
        assert all(error.is_within("fp32") for error in found), found
    service.stop()


async def test_service_survives_the_death_of_its_engine(service: Service) -> None:
    """Calls end with an honest status, and the next engine has the device."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        assert (await unary(channel, window_request())).code is Code.OK
        before = len(service.logged())
        calls = [asyncio.create_task(unary(channel, window_request())) for _ in range(CALLS)]
        os.kill(service.pid("engine-0"), signal.SIGKILL)
        ended = Counter([(await call).code for call in calls])
        assert set(ended) <= {Code.OK, Code.UNAVAILABLE}, ended
        await asyncio.to_thread(service.wait_for, "spawned", after=before, child="engine-0")
        until = time.monotonic() + RECOVERY_S
        while (ending := await unary(channel, window_request())).code is not Code.OK:
            assert ending.code is Code.UNAVAILABLE, ending
            assert time.monotonic() < until, service.output()
            await asyncio.sleep(0.1)  # a caller that tries again
    service.stop()


async def test_service_drains_and_leaves_the_device(service: Service) -> None:
    """What was admitted before SIGTERM is answered, and no process is left."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        stream = RpcStream(channel)
        with service.paused():
            messages = [
                streamed(at, window_request(priority=REAL_TIME, timeout=PATIENT)) for at in range(CALLS)
            ]
            await stream.send(*messages, b"\xff")
            assert (await stream.answer())[0] == 0  # of the bad message: those before it have been admitted
            await stream.half_close()
            service.signal(signal.SIGTERM)
            await asyncio.to_thread(service.wait_for, "draining")
        answers, end = await stream.rest()
        assert end.code is Code.OK
        assert sorted(sequence for sequence, _ in answers) == list(range(CALLS))
        assert Counter(ending.code for _, ending in answers) == {Code.OK: CALLS}
    assert await asyncio.to_thread(service.wait) == 0
    assert service.check_ends() == CALLS
