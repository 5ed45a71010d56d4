"""Every bad call of the table ends as it must, and the server goes on."""

import grpc.aio
import pytest

from tests.e2e.bad_calls_table import (
    MESSAGES,
    RPCS,
    BadMessage,
    BadRpc,
    answers_good_calls,
    good_message,
)
from tests.e2e.calls import exchange, streamed, unary

Code = grpc.StatusCode


@pytest.fixture
def target(bad: BadMessage, request: pytest.FixtureRequest) -> grpc.aio.Channel:
    """A channel to the server that this message is for."""
    channel: grpc.aio.Channel = request.getfixturevalue("zoo_channel" if bad.in_zoo else "channel")
    return channel


@pytest.mark.parametrize("bad", MESSAGES, ids=lambda bad: bad.call)
async def test_bad_message_fails_as_a_call_of_its_own(bad: BadMessage, target: grpc.aio.Channel) -> None:
    """Code, text and details; a good call is answered afterwards."""
    bad.expected.check(await unary(target, bad.message()))
    await answers_good_calls(target, in_zoo=bad.in_zoo)


@pytest.mark.parametrize("bad", MESSAGES, ids=lambda bad: bad.call)
async def test_bad_message_fails_alone_on_an_rpc_stream(bad: BadMessage, target: grpc.aio.Channel) -> None:
    """The same end as a call of its own; the messages before and after it are answered."""
    good = good_message(in_zoo=bad.in_zoo)
    answers, end = await exchange(target, streamed(1, good), streamed(2, bad.message()), streamed(3, good))
    assert answers.keys() == {1, 2, 3}
    assert (answers[1].code, answers[3].code, end.code) == (Code.OK, Code.OK, Code.OK)
    bad.expected.check(answers[2])
    await answers_good_calls(target, in_zoo=bad.in_zoo)


@pytest.mark.parametrize("bad", RPCS, ids=lambda bad: bad.call)
async def test_bad_rpc_ends_as_it_must(bad: BadRpc, channel: grpc.aio.Channel) -> None:
    """Code, text and details; a good call is answered afterwards."""
    bad.expected.check(await bad.send(channel))
    await answers_good_calls(channel)


def test_the_table_is_long_enough() -> None:
    """At least the thirty ways to go wrong that were asked for, each named once."""
    names = [bad.call for bad in MESSAGES] + [bad.call for bad in RPCS]
    assert len(names) == len(set(names)) >= 30
