"""What the supervisor and its children say to each other."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server import control
from server.boot import Boot, spawn
from server.control import Message
from tests.server.processes import ENVIRONMENT

Channel = tuple[socket.socket, socket.socket]
DEADLINE_S = 20.0


@pytest.fixture
def channel() -> Iterator[Channel]:
    ours, theirs = control.channel()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_keep_their_boundaries_and_order(channel: Channel) -> None:
    """Also when several wait."""
    ours, theirs = channel
    sent: list[Message] = [{"type": "a"}, {"type": "b", "text": "é\n\0", "list": [1, None, 2.5]}, {}]
    for message in sent:
        control.send(ours, message)
    assert [control.receive(theirs) for _ in sent] == sent


def test_both_ways(channel: Channel) -> None:
    """One pair is enough."""
    ours, theirs = channel
    control.send(theirs, {"type": "up"})
    control.send(ours, {"type": "down"})
    assert control.receive(ours) == {"type": "up"}
    assert control.receive(theirs) == {"type": "down"}


def test_large_message_arrives_whole(channel: Channel) -> None:
    """A repository's manifests, for example."""
    ours, theirs = channel
    message = {"type": "boot", "text": "x" * 150_000}
    control.send(ours, message)
    assert control.receive(theirs) == message


def test_message_over_the_limit_is_a_bug(channel: Channel) -> None:
    """Told in one line, instead of being cut at the other end."""
    with pytest.raises(ValueError, match=rf"bytes, allowed are {control.MAX_MESSAGE_BYTES}"):
        control.send(channel[0], {"text": "x" * control.MAX_MESSAGE_BYTES})


def test_end_of_the_other_side(channel: Channel) -> None:
    """What it has said is still there; then None, and sending fails."""
    ours, theirs = channel
    control.send(theirs, {"type": "last"})
    theirs.close()
    assert control.receive(ours) == {"type": "last"}
    assert control.receive(ours) is None
    with pytest.raises(BrokenPipeError):
        control.send(ours, {"type": "too late"})


def test_death_with_something_unread(channel: Channel) -> None:
    """The kernel says that the connection was reset; it is an end like any other."""
    ours, theirs = channel
    control.send(ours, {"type": "never read"})
    theirs.close()
    assert control.receive(ours) is None


async def test_listening_delivers_in_order_and_the_end_last(channel: Channel) -> None:
    """Once each."""
    ours, theirs = channel
    heard: list[Message | None] = []
    ended = asyncio.Event()

    def hear(message: Message | None) -> None:
        heard.append(message)
        if message is None:
            ended.set()

    control.listen(ours, hear)
    for number in range(3):
        control.send(theirs, {"number": number})
    theirs.close()
    async with asyncio.timeout(DEADLINE_S):
        await ended.wait()
    await asyncio.sleep(0)
    assert heard == [{"number": 0}, {"number": 1}, {"number": 2}, None]


@pytest.mark.parametrize("gone", [True, False])
def test_what_was_said_before_nobody_listened_any_more(channel: Channel, gone: bool) -> None:
    """All of it, whether the other side is still there or not."""
    ours, theirs = channel
    ours.setblocking(False)
    control.send(theirs, {"number": 1})
    control.send(theirs, {"number": 2})
    if gone:
        theirs.close()
    assert list(control.unread(ours)) == [{"number": 1}, {"number": 2}]
    assert list(control.unread(ours)) == []


# -- boot ---------------------------------------------------------------------------------------

BOOT = Boot(
    role="engine",
    index=1,
    parent_pid=7,
    arena_fd=8,
    frontend_eventfds=(9, 10),
    engine_eventfds=(11,),
    revision=3,
    settings='{"server": {}}',
    lineup='{"é": 1}',
    grpc_port=8001,
    device="cuda:1",
)


def test_boot_arrives_as_it_was_sent(channel: Channel) -> None:
    """Tuples stay tuples, None stays None."""
    ours, theirs = channel
    control.send(ours, BOOT.to_message())
    assert Boot.from_message(control.receive(theirs)) == BOOT


@pytest.mark.parametrize("message", [None, {}, {"type": "attach"}])
def test_anything_else_is_no_boot(message: Message | None) -> None:
    """A child that is told something else first has been started by somebody else."""
    with pytest.raises(ValueError, match="expected boot, got"):
        Boot.from_message(message)


# -- death of the parent ------------------------------------------------------------------------

CHILD = """
import os, sys, time
from server.control import die_with_parent
die_with_parent(int(sys.argv[1]))
print("armed", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2] or str(os.getpid())])
child.wait()
"""


def start_parent(claimed_parent: str) -> "subprocess.Popen[str]":
    """A parent and a child that share a pipe: its end is the end of both."""
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, claimed_parent],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def test_child_dies_with_its_parent() -> None:
    """Killed, so without a chance to say good-bye."""
    with start_parent("") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "armed\n"
        parent.send_signal(signal.SIGKILL)
        readable, _, _ = select.select([parent.stdout], [], [], DEADLINE_S)
        assert readable, "the child is still there"
        assert parent.stdout.read() == ""


def test_child_whose_parent_has_gone_already_ends() -> None:
    """No signal would come: it looks once more after asking for one."""
    with start_parent(str(os.getpid())) as parent:  # not the pid of its parent
        assert parent.stdout is not None
        assert parent.stdout.read() == ""


def test_spawned_child_has_the_arena_and_the_eventfds_by_their_numbers() -> None:
    """They are how everybody finds each other; what else its parent has open is not passed on."""
    arena_fd, decoy_fd = os.memfd_create("test-arena"), os.memfd_create("test-decoy", 0)
    eventfds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(3)]
    boot = replace(
        BOOT,
        parent_pid=os.getpid(),
        arena_fd=arena_fd,
        frontend_eventfds=tuple(eventfds[:2]),
        engine_eventfds=tuple(eventfds[2:]),
    )
    process, ours, pidfd = spawn(boot)
    open_there = Path(f"/proc/{process.pid}/fd")
    try:
        assert os.readlink(open_there / str(arena_fd)).startswith("/memfd:test-arena")
        for fd in eventfds:
            assert os.readlink(open_there / str(fd)) == "anon_inode:[eventfd]"
        assert not (open_there / str(decoy_fd)).exists()
    finally:
        process.kill()
        process.wait()
        ours.close()
        for fd in (pidfd, arena_fd, decoy_fd, *eventfds):
            os.close(fd)
