from collections.abc import Iterator

import pytest

from tests.scheduler.native.native_world import NativeWorld


@pytest.fixture
def native() -> Iterator[NativeWorld]:
    world = NativeWorld()
    yield world
    world.close()
