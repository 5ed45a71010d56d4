"""What the engine reads of its host."""

import os
import threading

import psutil
import pytest

from server import resources
from server.settings import load_settings


def test_readings_are_ratios_of_this_machine() -> None:
    """Load per core that this process may use, and memory in use."""
    found = resources.readings()
    assert found.keys() == {"host load", "host memory"}
    assert 0 <= found["host load"] < 1000
    assert 0 < found["host memory"] <= 1


def test_load_is_per_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one minute; a container with two of eight cores is full at a load of two."""
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 50.0, 50.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert resources.readings()["host load"] == 1.5


@pytest.mark.parametrize(
    ("executor", "reading"),
    [
        ({"host_load_high": 2.0}, {"host load": 2.0, "host memory": 0.1}),
        ({"memory_utilization_high": 0.8}, {"host load": 0.1, "host memory": 0.8}),
    ],
)
def test_pressure_shrinks_the_batches(
    monkeypatch: pytest.MonkeyPatch, executor: dict[str, float], reading: dict[str, float]
) -> None:
    """From the marks in the settings on; each change is told once."""
    told: list[int] = []
    shrunk = threading.Event()

    def shrink(steps: int) -> None:
        told.append(steps)
        if steps == 3:
            shrunk.set()
            threading.Event().wait()  # the thread has no other end than that of its process

    monkeypatch.setattr(resources, "EVERY_S", 0.0)
    monkeypatch.setattr(resources, "readings", lambda: reading)
    resources.watch(load_settings({"executor": executor}, environ={}), shrink)
    assert shrunk.wait(10)
    assert told == [1, 2, 3]
