"""Models that change while they are asked: a folder to write to, callers that never stop, the admin port."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import torch
from torch import Tensor, nn

from tests.e2e import zoo
from tests.e2e.calls import PATIENCE_S, Ending, RpcStream, array, request, streamed, tensor, unary
from tests.e2e.service import Service
from tests.server.admin_calls import Caller, Refusal
from tickring.v1 import inference_pb2, model_pb2, types_pb2

Code = grpc.StatusCode
SLOTS = 256  # of each front end
SETTINGS = {
    "TICKRING_SERVER__FRONTENDS": "2",
    "TICKRING_SCHEDULER__ADAPTIVE": "false",
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "4",
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": str(SLOTS),
    # An engine that a test pauses shall not be taken for one that hangs, nor a deadline pass meanwhile.
    "TICKRING_EXECUTOR__STALL_TIMEOUT_S": "60",
    "TICKRING_SCHEDULER__EARLY_REFUSAL": "false",
    "TICKRING_SCHEDULER__CLASSES__REAL_TIME_TRADING__DEFAULT_TIMEOUT_MS": "60000",
}
# A change takes as long as torch takes to load, on a machine that others use too.
CHANGE_TIMEOUT_S = 60.0
# Between two requests of one caller: the load is bounded.
PAUSE_S = 0.005
ON_ONE_STREAM = 100


class Times(nn.Module):
    """x → factor · x: what a version answers says which one it is."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Slow(nn.Module):
    """x → 2x, some milliseconds later, whatever the batch."""

    def forward(self, x: Tensor) -> Tensor:
        one = torch.eye(64)
        product = one
        for _ in range(300):
            product = product @ one
        return x + x * product[0, 0]


class Endless(nn.Module):
    """Never answers."""

    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while count >= 0:
            count = (count + 1) % 7
        return x


class Deadly(nn.Module):
    """Takes its process down: a matrix whose indices nobody checks."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.full([x.size(0) + 1], 1 << 50, dtype=torch.int64)
        columns = torch.full([2], 1 << 50, dtype=torch.int64)
        return torch.sparse_csr_tensor(rows, columns, x[0, :2], [x.size(0), 4]).to_dense()


class Model:
    """A model's folder, which grows while a server serves it. Version n answers n times its input."""

    def __init__(self, repository: Path, name: str) -> None:
        self.name = name
        self.repository = repository
        self._folder = repository / name
        self._sha256: dict[int, str] = {}

    @property
    def newest(self) -> int:
        """Of the versions on disk."""
        return max(self._sha256)

    def add(self, file: bytes | None = None, *, sha256: str | None = None) -> int:
        """One version more, its file before its name; a bad one has another file, or another digest."""
        number = max(self._sha256, default=0) + 1
        content = zoo.archive(Times(float(number))) if file is None else file
        path = self._folder / str(number) / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._sha256[number] = sha256 or hashlib.sha256(content).hexdigest()
        self.describe()
        return number

    def remove(self, number: int) -> None:
        """What `add` did."""
        del self._sha256[number]
        self.describe()
        (self._folder / str(number) / "model.pt").unlink()
        (self._folder / str(number)).rmdir()

    def destroy(self) -> None:
        """All of it."""
        shutil.rmtree(self._folder)

    def describe(self, aliases: Mapping[str, int] | None = None, size: int = 4) -> None:
        """Writes the manifest, all at once."""
        text = f'name = "{self.name}"\nformat = "torchscript"\nprecision = "fp32"\n'
        text += zoo.tensor_table("inputs", "x", "FP32", [size])
        text += zoo.tensor_table("outputs", "y", "FP32", [size])
        for number, digest in self._sha256.items():
            text += f'[versions.{number}]\nsha256 = "{digest}"\n'
        text += "[aliases]\n" + "".join(f"{alias} = {number}\n" for alias, number in (aliases or {}).items())
        new = self._folder / "model.toml.new"
        new.write_text(text)
        new.rename(self._folder / "model.toml")

    def ask(self, value: float = 1.0, version: str = "", **fields: Any) -> inference_pb2.PredictRequest:
        """One row of an urgent class, so that nothing is held and nothing waits for company."""
        fields.setdefault("priority", types_pb2.PRIORITY_REAL_TIME_TRADING)
        return request(self.name, tensor("x", [[value] * 4]), model_version=version, **fields)


def factor_of(ending: Ending, value: float = 1.0) -> float:
    """What this value was multiplied by. Fails when the call did."""
    (output,) = ending.response.outputs
    factors = set((array(output)[0] / value).tolist())
    assert len(factors) == 1, factors
    return float(factors.pop())


def answered(ending: Ending, value: float = 1.0) -> int:
    """The version that has answered, by its own word and by what it answered. Fails when the call did."""
    version = int(ending.response.model_version)
    assert factor_of(ending, value) == version
    return version


class Admin(Caller):
    """The admin port of a server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, timeout_s=CHANGE_TIMEOUT_S)

    async def load(self, model: Model, version: int | None = None) -> None:
        """Returns once it serves."""
        text = "" if version is None else str(version)
        await self("LoadModel", model_name=model.name, model_version=text)

    async def unload(self, model: Model, version: int | None = None) -> None:
        """Returns once nothing of it is in flight."""
        text = "" if version is None else str(version)
        await self("UnloadModel", model_name=model.name, model_version=text)

    async def cannot_load(self, model: Model) -> Refusal:
        """How a load ended that must fail."""
        return await self.refused("LoadModel", model_name=model.name)


@contextlib.asynccontextmanager
async def admin_of(service: Service) -> AsyncIterator[Admin]:
    """A caller of its admin port."""
    port = service.wait_for("ready")["admin_port"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Admin(channel)


async def states(channel: grpc.aio.Channel, model: Model) -> dict[str, str]:
    """By version, what ModelService says of it."""
    asked = model_pb2.GetModelRequest(model_name=model.name).SerializeToString()
    ending = await unary(channel, asked, method="/tickring.v1.ModelService/GetModel")
    assert ending.code is Code.OK, ending
    found = model_pb2.GetModelResponse.FromString(ending.raw).model
    return {
        version.version: model_pb2.ModelState.Name(version.state).removeprefix("MODEL_STATE_")
        for version in found.versions
    }


@dataclass(frozen=True)
class Answer:
    """What became of one request of the callers, in the order in which they were sent."""

    sent: int
    version: int  # 0: none
    reason: str  # empty where it was answered


class Traffic:
    """Unary callers and RPC streams that never stop."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._numbers = itertools.count(1)
        self._stopping = False
        self._moved = asyncio.Event()
        self.answers: list[Answer] = []
        self._sent = 0

    @property
    def sent(self) -> int:
        """Requests so far; those that are sent from now on have a greater number."""
        return self._sent

    async def goes_on(self, count: int = 30) -> None:
        """Returns once so many that were sent from now on have been answered."""
        since = self._sent
        async with asyncio.timeout(CHANGE_TIMEOUT_S):
            while sum(answer.sent > since and answer.version > 0 for answer in self.answers) < count:
                self._moved.clear()
                await self._moved.wait()

    def versions(self, after: int = 0, until: int | None = None) -> set[int]:
        """That have answered what was sent after this and until then; fails where one was not answered."""
        found = [a for a in self.answers if a.sent > after and (until is None or a.sent <= until)]
        failed = Counter(answer.reason for answer in found if answer.reason)
        assert not failed, failed
        return {answer.version for answer in found}

    def ends(self, after: int = 0) -> Counter[str]:
        """How what was sent after this has ended: OK, or the reason of an error."""
        return Counter(answer.reason or "OK" for answer in self.answers if answer.sent > after)

    async def unary(self, channel: grpc.aio.Channel) -> None:
        """One caller of Predict."""
        while not self._stopping:
            number = self._next()
            self._note(number, await unary(channel, self._model.ask(number)))
            await asyncio.sleep(PAUSE_S)

    async def stream(self, channel: grpc.aio.Channel) -> None:
        """One caller of PredictStream, and of another one when that has ended."""
        while not self._stopping:
            stream = RpcStream(channel)
            for _ in range(ON_ONE_STREAM):
                number = self._next()
                try:
                    await stream.send(streamed(number, self._model.ask(number)))
                    sequence, ending = await stream.answer()
                except (AssertionError, asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.UsageError):
                    self._record(number, 0, "STREAM_ENDED")
                    break
                assert sequence == number
                self._note(number, ending)
                await asyncio.sleep(PAUSE_S)
                if self._stopping:
                    break
            else:
                await stream.half_close()
                rest, end = await stream.rest()
                assert (rest, end.code) == ([], Code.OK), (rest, end)

    def stop(self) -> None:
        """Callers end after their answer."""
        self._stopping = True

    def _next(self) -> int:
        self._sent = next(self._numbers)
        return self._sent

    def _note(self, number: int, ending: Ending) -> None:
        if ending.code is Code.OK:
            self._record(number, answered(ending, number), "")
        else:
            self._record(number, 0, ending.reason if ending.status is not None else ending.code.name)

    def _record(self, number: int, version: int, reason: str) -> None:
        self.answers.append(Answer(number, version, reason))
        self._moved.set()


@contextlib.asynccontextmanager
async def traffic(service: Service, model: Model) -> AsyncIterator[Traffic]:
    """Three callers and two streams, on connections of their own, so that each front end has some."""
    target = service.target
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),))
            )
            for _ in range(5)
        ]
        callers = Traffic(model)
        tasks = [asyncio.create_task(callers.unary(channel)) for channel in channels[:3]]
        tasks += [asyncio.create_task(callers.stream(channel)) for channel in channels[3:]]
        try:
            await callers.goes_on()
            yield callers
        finally:
            callers.stop()
            await asyncio.gather(*tasks)


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def engines(service: Service) -> set[int]:
    """The processes that are or were an engine of this service and are still there."""
    return {
        line["pid"]
        for line in service.logged()
        if line["event"] == "spawned" and line["child"].startswith("engine") and alive(line["pid"])
    }


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, 9)


def books(service: Service) -> dict[str, Any]:
    """What `/status` says."""
    url: str = service.wait_for("ready")["status"]
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Polls what has no event to await."""

    async def poll() -> None:
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), CHANGE_TIMEOUT_S)


def spawned_last(service: Service) -> str:
    """The child."""
    return str([line["child"] for line in service.logged() if line["event"] == "spawned"][-1])


async def alone(service: Service) -> str:
    """The engine that serves, once no other is left."""
    await until(lambda: len(books(service)["engines"]) == 1)
    (engine,) = books(service)["engines"]
    assert engines(service) == {service.pid(engine["name"])}
    return str(engine["name"])


async def settled(service: Service) -> None:
    """Returns once that is so and every item has ended, whose slots are free then."""
    await alone(service)
    await until(lambda: all(frontend["open"] == 0 for frontend in books(service)["frontends"]))
    assert all(frontend["slots_free"] == SLOTS for frontend in books(service)["frontends"])
