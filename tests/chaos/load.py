"""The load process: a steady mix of calls, and bursts when told to.

    python -m tests.chaos.load TARGET SEED

Commands come as JSON lines on stdin and are answered by one JSON line each, in order:

    {"do": "start", "allowed": […]}   steady calls begin; what they may end with beside OK
    {"do": "burst", "kind": "…"}      one of `bursts`, while they go on; its account
    {"do": "recover"}                 waits until every model has answered a call sent after this, and the mix
                                      has had an answer too
    {"do": "stop"}                    waits for the end of every steady call; their account

Ends with its stdin.
"""

import asyncio
import json
import random
import sys
import time
from typing import Any

from client import Client
from tests.chaos import bursts, mix

CALLERS = 24  # half of them unary
PAUSE_S = 0.01  # mean, between two calls of one caller
FAILED_PAUSE_S = 0.1  # after a failure, so that what is not there is not hammered
CLIENTS = 4
# Longer than the longest fault and what follows it: in the steady mix, no deadline may ever pass.
TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 2.0
RECOVERY_S = 40.0
POLL_S = 0.01


class Load:
    """The steady mix and its connections."""

    def __init__(self, target: str, seed: int) -> None:
        self._target = target
        self._rng = random.Random(seed)
        self._clients: list[Client] = []
        self._callers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._account = mix.Account()

    async def obey(self, command: dict[str, Any]) -> dict[str, object]:
        """Carries out one command; what to answer."""
        match command["do"]:
            case "start":
                return await self._start(frozenset(command["allowed"]))
            case "burst":
                account = mix.Account()
                await bursts.BURSTS[command["kind"]](self._target, self._rng, account)
                return account.to_message()
            case "recover":
                await self._recover()
                return {}
            case "stop":
                return await self._stop()
            case other:
                raise ValueError(f"unknown command {other}")

    async def _start(self, allowed: frozenset[str]) -> dict[str, object]:
        # Now and then a new connection, so that a front end that has been restarted gets its share again.
        for client in self._clients[:]:
            if self._rng.random() < 0.5:
                self._clients.remove(client)
                await client.close()
        while len(self._clients) < CLIENTS:
            self._clients.append(Client(self._target, retries=bursts.NO_RETRIES))
        self._stopping = False
        self._account = mix.Account()
        self._callers = [
            asyncio.create_task(
                self._call(self._clients[number % CLIENTS], allowed, unary=number // CLIENTS % 2 == 0)
            )
            for number in range(CALLERS)
        ]
        return {}

    async def _call(self, client: Client, allowed: frozenset[str], *, unary: bool) -> None:
        rng = self._rng
        while not self._stopping:
            status = await mix.run(client, mix.good_call(rng, TIMEOUT_S, allowed), self._account, unary=unary)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S) if status == mix.OK else FAILED_PAUSE_S)

    async def _recover(self) -> None:
        """Over a connection of its own: those of the mix may still have to find their way back."""
        started_s, answered = time.monotonic(), self._account.statuses[mix.OK]
        async with Client(self._target, retries=bursts.NO_RETRIES) as client:
            for model in mix.MODELS:
                while await self._probe(client, model) != mix.OK:
                    if time.monotonic() > started_s + RECOVERY_S:
                        self._account.problem(f"{model} did not answer for {RECOVERY_S:g} s")
                        return
                    await asyncio.sleep(POLL_S)
        # A mix that ended while all its callers paused after failures would not tell whether it recovers.
        while self._account.statuses[mix.OK] == answered:
            if time.monotonic() > started_s + RECOVERY_S:
                self._account.problem(f"no steady call was answered for {RECOVERY_S:g} s")
                return
            await asyncio.sleep(POLL_S)

    async def _probe(self, client: Client, model: str) -> str:
        call = mix.good_call(self._rng, PROBE_TIMEOUT_S)
        while call.model != model:
            call = mix.good_call(self._rng, PROBE_TIMEOUT_S)
        # Whether it succeeds is what is asked: its failure is no problem yet.
        return await mix.run(client, call, mix.Account(), unary=True)

    async def _stop(self) -> dict[str, object]:
        self._stopping = True
        for done in await asyncio.gather(*self._callers, return_exceptions=True):
            if done is not None:
                self._account.problem(f"a caller raised {done!r}")
        return self._account.to_message()

    async def close(self) -> None:
        """Closes the connections."""
        for client in self._clients:
            await client.close()


async def main(target: str, seed: int) -> None:
    """Obeys until stdin ends."""
    load = Load(target, seed)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await load.obey(json.loads(line))), flush=True)
    await load.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
