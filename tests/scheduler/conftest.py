from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.scheduler.door import Door, foretell
from tests.scheduler.world import EAGER, World


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def make_door(make_world: Callable[..., World]) -> Callable[..., Door]:
    def make(
        item_ms: float, target: int = 1, *, slots: int = 64, models: int = 1, frontends: int = 1
    ) -> Door:
        """An item costs so much, and a full batch has so many."""
        world = make_world(slots=slots, plans=[EAGER] * models)
        if item_ms:
            for model in range(models):
                foretell(world, item_ms, target, model=model)
        return Door(world, world.partition, frontends)

    return make
