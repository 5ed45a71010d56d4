"""Starts scripted servers in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).with_name("standin.py")


@dataclass(frozen=True)
class Standin:
    """A running stand-in server."""

    process: subprocess.Popen[str]
    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        # It ends with its standard input, and so also when the test process is killed.
        self.process.communicate()


Start = Callable[..., Standin]


def started(stack: ExitStack, *command: str) -> Standin:
    """Listens when it is returned, and ends with the stack."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), *filter(None, sys.path)))}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    stack.callback(process.communicate)
    assert process.stdout is not None
    return Standin(process, int(process.stdout.readline()))


@pytest.fixture(scope="session")
def start_standin() -> Iterator[Start]:
    """Starts stand-ins, with command line arguments as in standin.py."""
    with ExitStack() as stack:
        yield lambda *arguments: started(stack, str(STANDIN), *arguments)


@pytest.fixture(scope="session")
def start_admin() -> Iterator[Start]:
    """Starts admin ports with nothing behind them, with settings; see tests/server/admin_world.py."""
    with ExitStack() as stack:
        yield lambda **tables: started(stack, "-m", "tests.server.admin_world", json.dumps(tables))


@pytest.fixture(scope="session")
def admin_port(start_admin: Start) -> Standin:
    """One that several tests share: each leaves the settings as they were."""
    return start_admin()


@pytest.fixture(scope="session")
def standin(start_standin: Start) -> Standin:
    """The stand-in that most tests share."""
    return start_standin()


@pytest.fixture
async def client(standin: Standin) -> AsyncIterator[Client]:
    """A client of its own for each test, so with an RPC stream of its own."""
    async with Client(standin.target) as client:
        yield client
