"""What the supervisor and its children say to each other: one socketpair per child.

Messages are JSON objects over SOCK_SEQPACKET, which keeps their boundaries and reports the other end's
death as an empty read. Nothing here is on the path of a request.

    supervisor → child       boot, attach, change
    supervisor → front end   engine_ready, engine_lost, answer, try, drain
    supervisor → engine      discard, stop
    child → supervisor       warm, ready, changed, failed, drained
    front end → supervisor   engine_lost_ack, let_go, ask, tried
    engine → supervisor      discarded, device
    telemetry → supervisor   traced

What is about one engine or front end names it by its index.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

Message = dict[str, Any]

# The start message carries the settings and every model's manifest; far below this.
MAX_MESSAGE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


def channel() -> tuple[socket.socket, socket.socket]:
    """A connected pair: ours, and the child's to pass on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
    return ours, theirs


def send(sock: socket.socket, message: Message) -> None:
    """Sends one message. Raises BrokenPipeError or ConnectionResetError when the other end is gone."""
    payload = json.dumps(message).encode()
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ValueError(f"control message of {len(payload)} bytes, allowed are {MAX_MESSAGE_BYTES}")
    sock.send(payload)


def receive(sock: socket.socket) -> Message | None:
    """The next message, blocking; None when the other end is gone."""
    try:
        payload = sock.recv(MAX_MESSAGE_BYTES)
    except ConnectionResetError:
        return None
    return json.loads(payload) if payload else None


def listen(sock: socket.socket, on_message: Callable[[Message | None], None]) -> None:
    """Delivers every message to a callback of the running event loop; None, last, for the other's end."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)

    def readable() -> None:
        try:
            message = receive(sock)
        except BlockingIOError:
            return
        if message is None:
            loop.remove_reader(sock)
        on_message(message)

    loop.add_reader(sock, readable)


def unread(sock: socket.socket) -> Iterator[Message]:
    """What the other end said before it went; for a non-blocking socket that nobody listens to any more."""
    with contextlib.suppress(BlockingIOError):
        while (message := receive(sock)) is not None:
            yield message


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when the thread that started it ends.

    The control socket tells the same, but only to a process that still reads it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call: no signal will come
        os._exit(1)
