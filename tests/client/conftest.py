"""Starts the scripted server in a process of its own."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Client

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


@pytest.fixture(scope="session")
def start_standin() -> Iterator[Start]:
    """Starts stand-ins, with command line arguments as in standin.py; each is listening when returned."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ExitStack() as stack:

        def start(*arguments: str) -> Standin:
            process = subprocess.Popen(
                [sys.executable, str(STANDIN), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.callback(process.communicate)
            assert process.stdout is not None
            return Standin(process, int(process.stdout.readline()))

        yield start


@pytest.fixture(scope="session")
def standin(start_standin: Start) -> Standin:
    """The stand-in that most tests share."""
    return start_standin()


@pytest.fixture
async def client(standin: Standin) -> AsyncIterator[Client]:
    """A client of its own for each test, so with an RPC stream of its own."""
    async with Client(standin.target) as client:
        yield client
