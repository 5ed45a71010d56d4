"""The service config that comes with the protos, with two servers behind one name."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.e2e.calls import unary, window_request
from tests.e2e.conftest import Launch
from tests.e2e.service import BUNDLED, Service
from tests.e2e.status import admitted
from tickring.v1 import inference_pb2

SERVICE_CONFIG = (Path(inference_pb2.__file__).parent / "service_config.json").read_text()
CALLERS = 4
CALLS = 50
# A restarted server is found within this, not after gRPC's two minutes.
RECONNECT_MS = 500
PATIENCE_S = 60.0


class Load:
    """Callers that call one after the other until told to stop, and how their calls ended."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.endings: list[grpc.StatusCode] = []
        self._channel = channel
        self._moved = asyncio.Condition()
        self._stopped = False
        self._tasks = [asyncio.create_task(self._call()) for _ in range(CALLERS)]

    async def more(self, calls: int) -> None:
        """Returns when so many more calls have ended."""
        wanted = len(self.endings) + calls
        async with asyncio.timeout(PATIENCE_S), self._moved:
            await self._moved.wait_for(lambda: len(self.endings) >= wanted)

    async def reaches(self, service: Service, calls: int = CALLS) -> None:
        """Returns when so many calls have come to this server."""
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(admitted, service) < calls:
                await self.more(CALLERS)

    async def stop(self) -> None:
        """Returns when the last call has ended."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while not self._stopped:
            ending = await unary(self._channel, window_request())
            async with self._moved:
                self.endings.append(ending.code)
                self._moved.notify_all()


@pytest.mark.slow
async def test_calls_go_to_every_server_that_serves(launch: Launch) -> None:
    """To both; to the other one without a failed call while one is dead or starting; then to both again."""
    first, second = launch(settings=BUNDLED), launch(settings=BUNDLED)
    for service in (first, second):
        await asyncio.to_thread(service.ready)
    options = [
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(f"ipv4:{first.target},{second.target}", options=options) as channel:
        load = Load(channel)
        try:
            await load.reaches(first)
            await load.reaches(second)
            await asyncio.to_thread(first.kill)
            await load.more(CALLS)

            port = first.target.rpartition(":")[2]
            again = launch(f"--grpc-port={port}", settings=BUNDLED)
            await asyncio.to_thread(again.ready)
            await load.reaches(again)
            await load.reaches(second, admitted(second) + CALLS)
        finally:
            await load.stop()
    assert set(load.endings) == {grpc.StatusCode.OK}
    for service in (second, again):
        service.stop()
