"""What a caller can do to a server: bursts of calls beside the steady ones, over connections of their own."""

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable

import grpc
import grpc.aio
import psutil

from client import Client, RetryPolicy
from tests.chaos import mix
from tests.e2e import calls

NO_RETRIES = RetryPolicy(attempts=1)
TIMEOUT_S = 10.0
DEADLINES = frozenset(
    {mix.SILENT, "DEADLINE_EXCEEDED EXPIRED_IN_QUEUE", "DEADLINE_EXCEEDED DEADLINE_UNREACHABLE"}
)
FULL = frozenset({"RESOURCE_EXHAUSTED QUEUE_FULL"})
CUT_OFF = frozenset({"UNAVAILABLE", "UNAVAILABLE ENGINE_LOST", "UNAVAILABLE ENGINE_RESTARTING"})

POISONED, NEIGHBOURS = 12, 24
CANCELLED = 200
STREAMS, PER_STREAM = 4, 50
EXPIRING = 100
TOO_MANY = 900

Burst = Callable[[str, random.Random, mix.Account], Awaitable[None]]


async def poison(target: str, rng: random.Random, account: mix.Account) -> None:
    """Rows that make a model raise or answer NaN, some of them again and again, among good ones."""
    bad = [mix.bad_call(rng, TIMEOUT_S) for _ in range(POISONED)]
    batch = [*bad, *bad[:2], *(mix.good_call(rng, TIMEOUT_S) for _ in range(NEIGHBOURS))]
    rng.shuffle(batch)
    async with Client(target, retries=NO_RETRIES) as client:
        await _all(client, batch, rng, account)


async def cancel(target: str, rng: random.Random, account: mix.Account) -> None:
    """200 calls in flight, all cancelled within a few milliseconds."""
    async with Client(target, retries=NO_RETRIES) as client:
        tasks = [
            asyncio.create_task(
                mix.run(client, mix.good_call(rng, TIMEOUT_S, FULL), account, unary=rng.random() < 0.75)
            )
            for _ in range(CANCELLED)
        ]
        rng.shuffle(tasks)
        for task in tasks:
            if rng.random() < 0.1:
                await asyncio.sleep(0.001)
            task.cancel()
        await _ended(tasks, account)


async def close_streams(target: str, rng: random.Random, account: mix.Account) -> None:
    """RPC streams cancelled with messages in every state: unsent, queued, computing, answered."""
    async with grpc.aio.insecure_channel(target, calls.OWN_CONNECTION) as channel:
        for _ in range(STREAMS):
            stream = calls.RpcStream(channel)
            for sequence in range(PER_STREAM):
                call = mix.good_call(rng, TIMEOUT_S)
                message = calls.request(call.model, calls.tensor("x", call.x))
                await stream.send(calls.streamed(sequence, message))
            for _ in range(rng.randrange(PER_STREAM // 2)):
                _, ending = await asyncio.wait_for(stream.answer(), TIMEOUT_S)
                account.statuses[ending.code.name] += 1
            stream.call.cancel()
            answers, end = await asyncio.wait_for(stream.rest(), TIMEOUT_S)
            account.statuses[mix.CANCELLED_HERE] += 1
            account.statuses.update(ending.code.name for _, ending in answers)
            if end.code is not grpc.StatusCode.CANCELLED:
                account.problem(f"a cancelled RPC stream ended {end}")


async def drop_connection(target: str, rng: random.Random, account: mix.Account) -> None:
    """A TCP connection shut down under calls of both kinds; each ends, and soon."""
    before = _connections(target)
    async with Client(target, retries=NO_RETRIES) as client:
        await mix.run(client, mix.good_call(rng, TIMEOUT_S), account, unary=False)  # connects
        ours = _connections(target) - before
        tasks = [
            asyncio.create_task(
                mix.run(client, mix.good_call(rng, TIMEOUT_S, CUT_OFF), account, unary=rng.random() < 0.5)
            )
            for _ in range(2 * PER_STREAM)
        ]
        await asyncio.sleep(rng.uniform(0, 0.02))
        for descriptor, _ in ours:
            # A duplicate, so that gRPC's own descriptor stays gRPC's to close.
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        await _ended(tasks, account)


async def expire(target: str, rng: random.Random, account: mix.Account) -> None:
    """Timeouts of 1 to 5 ms."""
    async with Client(target, retries=NO_RETRIES) as client:
        batch = [mix.good_call(rng, rng.uniform(0.001, 0.005), DEADLINES | FULL) for _ in range(EXPIRING)]
        await _all(client, batch, rng, account)


async def overload(target: str, rng: random.Random, account: mix.Account) -> None:
    """More calls at once than there are slots."""
    async with Client(target, retries=NO_RETRIES) as one, Client(target, retries=NO_RETRIES) as two:
        batch = [mix.good_call(rng, rng.uniform(0.2, 2.0), DEADLINES | FULL) for _ in range(TOO_MANY)]
        half = len(batch) // 2
        await asyncio.gather(_all(one, batch[:half], rng, account), _all(two, batch[half:], rng, account))


BURSTS: dict[str, Burst] = {
    burst.__name__: burst for burst in (poison, cancel, close_streams, drop_connection, expire, overload)
}


async def _all(client: Client, batch: Iterable[mix.Call], rng: random.Random, account: mix.Account) -> None:
    await asyncio.gather(*(mix.run(client, call, account, unary=rng.random() < 0.25) for call in batch))


async def _ended(tasks: list[asyncio.Task[str]], account: mix.Account) -> None:
    """Waits for calls that may have been cancelled; anything else that one raised is a problem."""
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):  # CancelledError is none
            account.problem(f"a call raised {end!r}")


def _connections(target: str) -> set[tuple[int, int]]:
    """Descriptor and own port of every connection of this process to the server."""
    port = int(target.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return {(each.fd, each.laddr.port) for each in found if each.raddr and each.raddr.port == port}
