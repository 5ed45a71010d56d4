"""Everything in one command: start a server, replay history through it, stop it.

    python -m examples.sp500.demo

Exit code 0 only if the replay went through and the server then drained and ended with 0. Otherwise what
the server wrote to stderr is shown, and the exit code is 1. The server never outlives this process.
"""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import IO

from rich.console import Console

from client import Client, PredictionError
from examples.sp500.features import Windows, load_history, make_windows
from examples.sp500.replay import replay

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HOST = "127.0.0.1"
IN_FLIGHT = 16
LAST_SHOWN = 10
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
"""Longer than the server's own grace period for draining."""
KILLED_TIMEOUT_S = 5.0
POLL_S = 0.05
LOG_SHOWN_BYTES = 16_384


class ServerError(Exception):
    """The server did not start, died, or did not end as it should."""


class Interrupted(KeyboardInterrupt):
    """One of `STOP_SIGNALS` arrived. A KeyboardInterrupt, because asyncio lets nothing else through."""


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on now.

    Somebody may take one before the server does; it then fails to start, and says so.
    """
    with contextlib.ExitStack() as stack:
        # All are held until the last is found, or the kernel could give the same one twice.
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in held]


@contextlib.contextmanager
def running_server(command: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The server process, output in `log` (a file: a pipe that nobody reads would block it).

    On the way out it is stopped; its `returncode` then says how it took that.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_deferred():
            # A new program through exec, not a fork that goes on in this one: gRPC is loaded here. In
            # this process group, so that Ctrl-C in a terminal reaches it as well.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        yield process
    finally:
        if process is not None:
            stop(process)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """A signal to stop that arrives inside takes effect at the end, when there is a process to stop."""
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number)) for number in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, wait, SIGKILL after `STOP_TIMEOUT_S` or another Ctrl-C. The process is gone afterwards."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(KILLED_TIMEOUT_S)


async def wait_until_ready(process: subprocess.Popen[bytes], target: str) -> None:
    """Return when the server is ready; ServerError as soon as it has ended instead, or after a while."""
    async with Client(target) as client:
        ready = asyncio.create_task(client.wait_ready(timeout_s=READY_TIMEOUT_S))
        try:
            while not ready.done():
                if process.poll() is not None:
                    raise ServerError(f"the server ended with {process.returncode} before it was ready")
                await asyncio.wait({ready}, timeout=POLL_S)
            await ready
        except PredictionError as error:
            raise ServerError(str(error)) from error
        finally:
            ready.cancel()


async def replay_when_ready(
    process: subprocess.Popen[bytes], windows: Windows, target: str, console: Console
) -> None:
    """The part of the demo that a running server is needed for."""
    await wait_until_ready(process, target)
    console.print(f"the server at {target} is ready")
    await replay(windows, target, IN_FLIGHT, LAST_SHOWN, READY_TIMEOUT_S, console)


def run(command: list[str], target: str, log: IO[bytes], console: Console) -> None:
    """Start the server, replay, stop it. Raises ServerError or PredictionError."""
    console.print("starting the server")
    with running_server(command, log) as process:
        # While the server loads and warms up its model.
        windows = make_windows(load_history())
        asyncio.run(replay_when_ready(process, windows, target, console))
        begin = time.monotonic()
    if process.returncode == -signal.SIGKILL:
        raise ServerError(f"the server had to be killed {STOP_TIMEOUT_S:g} s after SIGTERM")
    if process.returncode != 0:
        raise ServerError(f"the server ended with {process.returncode}, not 0, after SIGTERM")
    console.print(f"the server drained and ended in {time.monotonic() - begin:.1f} s")


def server_command(ports: list[int]) -> tuple[list[str], str]:
    """How to start the server on three free ports, and the target for clients."""
    grpc_port, http_port, admin_port = ports
    options = {"--grpc-port": grpc_port, "--http-port": http_port, "--admin-port": admin_port}
    command = [sys.executable, "-m", "server"]
    for option, port in options.items():
        command += [option, str(port)]
    return command, f"{HOST}:{grpc_port}"


def _show_log(log: IO[bytes]) -> None:
    size = log.seek(0, 2)
    log.seek(max(0, size - LOG_SHOWN_BYTES))
    text = log.read().decode("utf-8", errors="replace")
    print(f"--- output of the server ---\n{text}", file=sys.stderr)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def main() -> int:
    """Exit code: 0 done, 1 something failed, 130 interrupted."""
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    command, target = server_command(free_ports(3))
    with tempfile.TemporaryFile() as log:
        try:
            run(command, target, log, Console())
        except Interrupted as error:
            print(f"demo: stopped by {error}", file=sys.stderr)
            return 130
        except Exception as error:
            _show_log(log)
            # A bug of the demo's own needs its traceback; these two say all there is to say.
            if not isinstance(error, ServerError | PredictionError):
                traceback.print_exc()
            print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
