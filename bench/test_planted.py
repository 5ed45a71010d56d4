"""The gates catch what they are there for: slowdowns planted here, judged as a slower build would be.

Each is one that a change could bring without a test of behaviour noticing. The gates of the same names, in
the files beside this one, run on the code as it is.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest

from bench.conftest import Gate
from bench.engine_path import overhead_us
from bench.frontend_path import FrontendPath, copy_rounds, request_rounds
from bench.wake_up import wake_up_us
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.partition import Partition
from server.rpc.desk import Desk

TAKE_S = 2e-6  # an item
FRONTEND_S = 50e-6  # a request


def burn(seconds: float) -> None:
    """As code does that takes so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def after(patch: pytest.MonkeyPatch, owner: type, name: str, more: Callable[[Any], None]) -> None:
    """Plants `more`, which is given what the method returned, behind a method."""
    original = getattr(owner, name)

    def slower(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        more(result)
        return result

    patch.setattr(owner, name, slower)


def test_take_that_is_2_us_slower_for_each_item(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(batch: object) -> None:
        if isinstance(batch, Batch):
            burn(TAKE_S * len(batch.slots))

    after(monkeypatch, Dispatcher, "_take", more)
    assert not gate.judge("engine_overhead", *(overhead_us() for _ in range(3))).holds


def test_front_end_that_is_50_us_slower(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    after(monkeypatch, Desk, "submit", lambda _: burn(FRONTEND_S))
    path = FrontendPath()
    assert not gate.judge("frontend_request", *request_rounds(path)).holds
    path.close()


def test_window_that_is_copied_twice(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    once = Partition.write_input

    def twice(*args: Any) -> None:
        once(*args)
        once(*args)

    monkeypatch.setattr(Partition, "write_input", twice)
    assert not gate.judge("write_input", *copy_rounds()).holds


def test_wake_ups_that_are_lost(gate: Gate) -> None:
    assert not gate.judge("wake_up", *(wake_up_us(0.99, lose=True) for _ in range(1))).holds
