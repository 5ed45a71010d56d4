"""Asks the front ends, over their control sockets, for a prediction of each model. See `server.rpc.trial`."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from server.children import Child
from server.control import Message

# For the answer's way back, beyond what the predictions may take.
MARGIN_S = 0.5


class Trials:
    """One for a supervisor, on its event loop."""

    def __init__(self, frontends: Sequence[Child]) -> None:
        self._frontends = frontends
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[str, int], asyncio.Future[list[dict[str, Any]]]] = {}

    async def run(self, timeout_s: float) -> Mapping[str, list[dict[str, Any]] | None]:
        """By front end that serves, what its predictions were; None where it has not answered in time."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        asked = {child.name: loop.create_future() for child in self._frontends if child.ready}
        self._waiting |= {(name, number): future for name, future in asked.items()}
        try:
            for child in self._frontends:
                if child.name in asked:
                    child.tell({"type": "try", "number": number, "timeout_s": timeout_s})
            if asked:
                await asyncio.wait(asked.values(), timeout=timeout_s + MARGIN_S)
        finally:
            for name in asked:
                del self._waiting[name, number]
        return {name: future.result() if future.done() else None for name, future in asked.items()}

    def heard(self, name: str, message: Message) -> None:
        """A front end's answer; one that came too late is dropped."""
        future = self._waiting.get((name, message["number"]))
        if future is not None and not future.done():
            future.set_result(message["predictions"])
