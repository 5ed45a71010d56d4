"""grpc.health.v1 over a real socket, without the rest of a server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from server.rpc.health import SERVICE, HealthService

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  # grpc-stubs does not know it
DEADLINE_S = 20.0


class Client:
    """Asks one server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        coding = (HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString)
        self._check: Any = channel.unary_unary(f"/{SERVICE}/Check", *coding)
        self._watch: Any = channel.unary_stream(f"/{SERVICE}/Watch", *coding)

    async def check(self, service: str) -> Any:
        answer = await self._check(HealthCheckRequest(service=service), timeout=DEADLINE_S)
        return answer.status

    async def watch(self, service: str) -> tuple[Any, Any]:
        """A Watch, and the first status that it tells."""
        call = self._watch(HealthCheckRequest(service=service), timeout=DEADLINE_S)
        return call, (await call.read()).status


@pytest.fixture
def health() -> HealthService:
    health = HealthService()
    health.set(["", "model"], serving=False)
    return health


@pytest.fixture
async def server(health: HealthService) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((health.handler(),))
    yield server
    await server.stop(None)


@pytest.fixture
async def client(server: grpc.aio.Server) -> AsyncIterator[Client]:
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel)


async def test_check_says_what_was_set_last(client: Client, health: HealthService) -> None:
    """Each name for itself."""
    health.set(["model"], serving=True)
    assert (await client.check(""), await client.check("model")) == (NOT_SERVING, SERVING)
    health.set(["", "model"], serving=True)
    health.set(["model"], serving=False)
    assert (await client.check(""), await client.check("model")) == (SERVING, NOT_SERVING)


async def test_check_of_a_name_that_is_none(client: Client) -> None:
    """The message says which names there are, and repeats no more than the start of a long one."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.check("m" * 500)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == f"no service '{'m' * 64}'; services are model, or none for all"


async def test_watch_tells_each_change_once(client: Client, health: HealthService) -> None:
    """And nothing of other names or of what stays as it is."""
    call, status = await client.watch("model")
    assert status == NOT_SERVING
    health.set([""], serving=True)
    health.set(["model"], serving=False)
    health.set(["model"], serving=True)
    assert (await call.read()).status == SERVING
    health.set(["model"], serving=False)
    assert (await call.read()).status == NOT_SERVING


async def test_watch_of_a_name_that_is_not_there_yet(client: Client, health: HealthService) -> None:
    """SERVICE_UNKNOWN, until it is."""
    call, status = await client.watch("later")
    assert status == UNKNOWN
    health.set(["later"], serving=True)
    assert (await call.read()).status == SERVING


async def test_drain_ends_every_watch(client: Client, server: grpc.aio.Server, health: HealthService) -> None:
    """Also those that have nothing new to hear: `stop` waits for none of them."""
    health.set(["model"], serving=True)
    watches = [await client.watch(name) for name in ("", "model", "unknown")]
    assert [status for _, status in watches] == [NOT_SERVING, SERVING, UNKNOWN]
    health.drain()
    async with asyncio.timeout(DEADLINE_S):
        await server.stop(10 * DEADLINE_S)
    heard = [await call.read() for call, _ in watches]
    assert heard == [EOF, HealthCheckResponse(status=NOT_SERVING), EOF]
    assert {await call.code() for call, _ in watches} == {grpc.StatusCode.OK}


async def test_nothing_serves_after_a_drain(client: Client, health: HealthService) -> None:
    """Not even what becomes ready only then."""
    health.drain()
    health.set(["", "model"], serving=True)
    assert (await client.check(""), await client.check("model")) == (NOT_SERVING, NOT_SERVING)
