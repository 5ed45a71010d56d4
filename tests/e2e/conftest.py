"""Real servers in other processes: two for the session, others for the test that asks."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.e2e import zoo
from tests.e2e.service import BUNDLED, Service

Launch = Callable[..., Service]
_RUNNING = pytest.StashKey[list[Service]]()


@pytest.fixture(scope="session")
def launch(request: pytest.FixtureRequest) -> Iterator[Launch]:
    """Starts a server, with the arguments of `Service`; it need not be stopped."""
    running = request.config.stash.setdefault(_RUNNING, [])

    def start(*arguments: str, settings: dict[str, str] | None = None) -> Service:
        running.append(Service(*arguments, settings=settings))
        return running[-1]

    yield start
    for service in running:
        service.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Shows what the servers have written beside a test that failed."""
    report = yield
    if report.failed:
        for service in item.config.stash.get(_RUNNING, []):
            report.sections.append((f"server {' '.join(service.arguments)}", service.output()))
    return report


@pytest.fixture(scope="session")
def bundled(launch: Launch) -> Iterator[Service]:
    """Serves the bundled model."""
    service = launch(settings=BUNDLED).ready()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def zoo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `zoo`."""
    return zoo.build(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def menagerie(launch: Launch, zoo_repository: Path) -> Iterator[Service]:
    """Serves the models of `zoo` with tight limits and without a default model."""
    service = launch("--models", str(zoo_repository), settings=zoo.SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def channel(bundled: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the bundled model."""
    async with grpc.aio.insecure_channel(bundled.target) as channel:
        yield channel


@pytest.fixture
async def zoo_channel(menagerie: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the models of `zoo`."""
    async with grpc.aio.insecure_channel(menagerie.target) as channel:
        yield channel
