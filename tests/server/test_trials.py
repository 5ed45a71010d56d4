"""Predictions that front ends make for themselves, and how the supervisor asks for them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server import trials
from server.children import Child
from server.control import Message
from server.rpc.trial import try_models, zeros
from server.trials import Trials
from tests.server.world import FrontEnd
from tickring.v1 import inference_pb2

Found = list[dict[str, Any]]


async def tried(front_end: FrontEnd, act: Callable[[], object], timeout_s: float = 20.0) -> Found:
    """What a trial finds, after the one prediction of `pair` has been queued and this was done."""
    running = asyncio.create_task(try_models(front_end.desk, front_end.models, timeout_s))
    while not front_end.partition.outstanding[PriorityClass.REAL_TIME_TRADING.index]:
        await asyncio.sleep(0)
        assert not running.done(), running.result()
    act()
    return await running


async def test_prediction_takes_the_path_of_a_request(front_end: FrontEnd) -> None:
    """One row of zeros in the most urgent class, which waits for no company."""

    def complete() -> None:
        assert front_end.arena.native.depth(0, 0, PriorityClass.REAL_TIME_TRADING.index) == 1
        front_end.complete(Outcome.RESULT)

    (found,) = await tried(front_end, complete)
    assert found.pop("ms") > 0
    assert found == {"model_name": "pair", "model_version": "3", "error": "", "by_model": False}
    assert front_end.partition.free_slots == front_end.slots


@pytest.mark.parametrize(
    ("outcome", "by_model", "words"),
    [
        (Outcome.ERROR, True, "failed on this request"),
        (Outcome.NON_FINITE, True, "NaN"),
        (Outcome.LOST, False, "the engine was lost"),
        (Outcome.EXPIRED, False, "the deadline could not be met"),
    ],
)
async def test_failure_says_whose_it_is(
    front_end: FrontEnd, outcome: Outcome, by_model: bool, words: str
) -> None:
    """A model that cannot do with zeros is no reason to restart a service."""
    end = {Outcome.LOST: lambda: front_end.partition.lose_engine(0)}.get(
        outcome, lambda: front_end.complete(outcome)
    )
    (found,) = await tried(front_end, end)
    assert found["by_model"] is by_model
    assert words in found["error"]


async def test_refusal_is_a_failure(front_end: FrontEnd) -> None:
    """Of a front end that drains, for example: callers would be told the same."""
    front_end.admission.draining = True
    (found,) = await try_models(front_end.desk, front_end.models, 1.0)
    assert (found["error"], found["by_model"]) == ("the server is draining", False)


async def test_engine_that_does_not_answer_is_given_up(front_end: FrontEnd) -> None:
    """In time, and nothing of the request goes on."""
    (found,) = await try_models(front_end.desk, front_end.models, 0.05)
    assert found["error"] == "no answer within 0.05 s"
    front_end.complete(Outcome.RESULT)
    assert front_end.partition.free_slots == front_end.slots


def test_zeros_fit_every_shape() -> None:
    """One row; of a dynamic dimension one element, or as few as it may have."""
    signature = ModelSignature(
        name="dynamic",
        version=2,
        inputs=(
            TensorSpec("fixed", DataType.INT64, (2, 3)),
            TensorSpec("scalar", DataType.FP32, ()),
            TensorSpec("free", DataType.FP64, (-1, 4), max_shape=(9, 4)),
            TensorSpec("least", DataType.BOOL, (-1,), max_shape=(9,), min_shape=(5,)),
        ),
        outputs=(),
    )
    request = inference_pb2.PredictRequest.FromString(zeros(signature))
    assert (request.model_name, request.model_version) == ("dynamic", "2")
    assert [tuple(each.shape) for each in request.inputs] == [(1, 2, 3), (1,), (1, 1, 4), (1, 5)]
    assert [len(each.data) for each in request.inputs] == [48, 4, 32, 5]
    assert not any(np.frombuffer(each.data, np.uint8).any() for each in request.inputs)


@dataclass
class FakeChild:
    """A front end that keeps what it is told."""

    name: str
    ready: bool = True
    told: list[Message] = field(default_factory=list)

    def tell(self, message: Message) -> None:
        self.told.append(message)


def world(*children: FakeChild) -> Trials:
    return Trials(cast("list[Child]", children))


async def started(coroutine: Awaitable[Any]) -> "asyncio.Task[Any]":
    """Has asked, and waits for answers."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


async def test_every_front_end_that_serves_is_asked() -> None:
    """And its own answer counts, to this question and no other."""
    one, two, absent = FakeChild("frontend-0"), FakeChild("frontend-1"), FakeChild("frontend-2", ready=False)
    asking = world(one, two, absent)
    running = await started(asking.run(3.0))
    (question,) = one.told
    assert (question["type"], question["timeout_s"]) == ("try", 3.0)
    assert (len(two.told), absent.told) == (1, [])
    asking.heard("frontend-0", {"number": question["number"] - 1, "predictions": ["old"]})
    asking.heard("frontend-1", {"number": question["number"], "predictions": ["b"]})
    asking.heard("frontend-0", {"number": question["number"], "predictions": ["a"]})
    assert await running == {"frontend-0": ["a"], "frontend-1": ["b"]}
    asking.heard("frontend-0", {"number": question["number"], "predictions": ["late"]})


async def test_front_end_that_does_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits gets what is there by then."""
    monkeypatch.setattr(trials, "MARGIN_S", 0.0)
    one, two = FakeChild("frontend-0"), FakeChild("frontend-1")
    asking = world(one, two)
    running = await started(asking.run(0.05))
    asking.heard("frontend-0", {"number": one.told[0]["number"], "predictions": []})
    assert await running == {"frontend-0": [], "frontend-1": None}


async def test_nobody_to_ask() -> None:
    """Is an answer at once."""
    assert await world(FakeChild("frontend-0", ready=False)).run(3.0) == {}
