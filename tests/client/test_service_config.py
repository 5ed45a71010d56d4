"""The service config that comes with the protos, as gRPC's own client understands it: what is retried."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from client.codec import read_response
from tickring.v1 import inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    from tests.client.conftest import Standin

SERVICE_CONFIG = (Path(inference_pb2.__file__).parent / "service_config.json").read_text()


@pytest.fixture
async def channel(standin: "Standin") -> AsyncIterator[grpc.aio.Channel]:
    """With nothing but the service config."""
    options = [("grpc.service_config", SERVICE_CONFIG)]
    async with grpc.aio.insecure_channel(standin.target, options=options) as channel:
        yield channel


async def attempts(channel: grpc.aio.Channel, key: str, code: str = "") -> int:
    """How many requests of this key the server has seen, this one included. Raises as the script says."""
    request = inference_pb2.PredictRequest(model_name="flaky", model_version=code, routing_key=key)
    response = await inference_pb2_grpc.InferenceServiceStub(channel).Predict(request, timeout=20)
    return int(read_response(response)["attempts"].item())


async def test_unavailable_is_retried(channel: grpc.aio.Channel) -> None:
    """Three failures are within four attempts."""
    assert await attempts(channel, "config recovers:3:") == 4


async def test_attempts_are_bounded(channel: grpc.aio.Channel) -> None:
    """The fourth failure is the caller's."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await attempts(channel, "config bounded:4:")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await attempts(channel, "config bounded:4:") == 5


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED"])
async def test_nothing_else_is_retried(channel: grpc.aio.Channel, code: str) -> None:
    """It is the caller's at once."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await attempts(channel, f"config {code}:1:", code)
    assert raised.value.code().name == code
    assert await attempts(channel, f"config {code}:1:", code) == 2
