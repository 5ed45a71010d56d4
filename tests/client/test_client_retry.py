"""When a prediction is tried again, and when not."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from client import Client, PredictionError, RetryPolicy, Unavailable
from tickring.v1 import inference_pb2

if TYPE_CHECKING:
    from tests.client.conftest import Standin

BOTH = pytest.mark.parametrize("method", ["predict", "predict_unary"])


@BOTH
@pytest.mark.parametrize("retry_ms", ["", "5"])
async def test_unavailable_is_retried(client: Client, method: str, retry_ms: str) -> None:
    """Two failures, with or without RetryInfo, are within the default of three attempts."""
    key = f"{method} recovers:2:{retry_ms}"
    prediction = await getattr(client, method)({}, model="flaky", routing_key=key)
    assert prediction["attempts"].item() == 3


@BOTH
async def test_attempts_are_bounded_and_counted_once(client: Client, method: str) -> None:
    """The third failure is the caller's, and the server has seen exactly three attempts."""
    key = f"{method} bounded:3:5"
    with pytest.raises(Unavailable, match="scripted outage") as raised:
        await getattr(client, method)({}, model="flaky", routing_key=key)
    assert raised.value.retry_after_s == pytest.approx(0.005)
    prediction = await getattr(client, method)({}, model="flaky", routing_key=key)
    assert prediction["attempts"].item() == 4


@BOTH
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED", "CANCELLED"])
async def test_nothing_else_is_retried(client: Client, method: str, code: str) -> None:
    """Other failures come back after one attempt, even with RetryInfo."""
    call = {"model": "flaky", "version": code, "routing_key": f"{method} {code}:1:5"}
    with pytest.raises(PredictionError) as raised:
        await getattr(client, method)({}, **call)
    assert raised.value.code.name == code
    assert raised.value.retry_after_s is not None
    assert (await getattr(client, method)({}, **call))["attempts"].item() == 2


@BOTH
async def test_a_wait_past_the_timeout_is_not_begun(client: Client, method: str) -> None:
    """RetryInfo of 5 s against 1 s left: the caller gets UNAVAILABLE now, after one attempt."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    key = f"{method} late:1:5000"
    with pytest.raises(Unavailable):
        await getattr(client, method)({}, model="flaky", routing_key=key, timeout_s=1)
    assert loop.time() - started < 0.9
    prediction = await getattr(client, method)({}, model="flaky", routing_key=key)
    assert prediction["attempts"].item() == 2


async def test_a_retry_asks_for_the_time_that_is_left(client: Client) -> None:
    """The timeout on the wire shrinks by what the first attempts and waits took."""
    prediction = await client.predict({}, model="flaky", routing_key="shrinks:2:100", timeout_s=10)
    request = inference_pb2.PredictRequest.FromString(prediction["request"].tobytes())
    assert 5 < request.timeout.ToNanoseconds() / 1e9 <= 9.8


async def test_retries_can_be_switched_off(standin: "Standin") -> None:
    """One attempt means that the first UNAVAILABLE is the caller's."""
    async with Client(standin.target, retries=RetryPolicy(attempts=1)) as client:
        with pytest.raises(Unavailable):
            await client.predict({}, model="flaky", routing_key="off:1:")
        assert (await client.predict({}, model="flaky", routing_key="off:1:"))["attempts"].item() == 2


@pytest.mark.parametrize(
    ("attempt", "retry_after_s", "remaining_s", "jitter", "wait_s"),
    [
        (1, None, None, 0.0, 0.05),
        (1, None, None, 1.0, 0.1),
        (2, None, None, 1.0, 0.2),
        (6, None, None, 1.0, 1.0),  # 3.2 s, were it not bounded
        (10, None, None, 1.0, None),
        (1, 0.7, None, 0.5, 0.7),
        (1, 0.0, None, 0.5, 0.0),
        (1, 4.0, None, 0.5, 4.0),
        (1, 4.1, None, 0.5, None),
        (1, 0.7, 0.71, 0.5, 0.7),
        (1, 0.7, 0.7, 0.5, None),
        (1, None, 0.1, 1.0, None),
    ],
)
def test_policy_decides(
    attempt: int, retry_after_s: float | None, remaining_s: float | None, jitter: float, wait_s: float | None
) -> None:
    """Exponential with jitter, the server's word first, never more than is left."""
    policy = RetryPolicy(attempts=10, first_wait_s=0.1, max_wait_s=1.0, max_retry_after_s=4.0)
    assert policy.wait_s(attempt, retry_after_s, remaining_s, jitter) == (
        None if wait_s is None else pytest.approx(wait_s)
    )


@pytest.mark.parametrize(
    "bounds", [{"attempts": 0}, {"first_wait_s": -1.0}, {"first_wait_s": 3.0, "max_wait_s": 2.0}]
)
def test_policy_refuses_senseless_bounds(bounds: dict[str, float]) -> None:
    """A policy that cannot hold is refused where it is written."""
    with pytest.raises(ValueError, match=r"at least 1|must be"):
        RetryPolicy(**bounds)  # type: ignore[arg-type]
