from collections.abc import Callable, Iterator
from typing import Any

import pytest

from server import admission
from tests.server.world import FrontEnd


@pytest.fixture
def make_front_end() -> Iterator[Callable[..., FrontEnd]]:
    made: list[FrontEnd] = []

    def make(**options: Any) -> FrontEnd:
        made.append(FrontEnd(**options))
        return made[-1]

    yield make
    for front_end in made:
        front_end.close()


@pytest.fixture
def no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that predictions can be told to the nanosecond; the way back has tests of its own."""
    monkeypatch.setattr(admission, "WAY_BACK_PART", 0.0)


@pytest.fixture
def front_end(make_front_end: Callable[..., FrontEnd]) -> FrontEnd:
    return make_front_end()
