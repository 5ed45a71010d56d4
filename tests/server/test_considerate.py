"""Work that stands back: by whom, how far, and that everybody else is as before."""

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from server import considerate
from server.considerate import LEFT_OVER_CORES, NICENESS, done, idle_cores

STORY: ContextVar[str] = ContextVar("story")


def stance() -> tuple[int, int]:
    """Policy and niceness of this thread."""
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many cores are idle."""
    return lambda cores: monkeypatch.setattr(considerate, "idle_cores", lambda: cores)


def test_work_of_nobody_in_particular_is_done_here(idle: Callable[[float], None]) -> None:
    idle(2.0)
    before = stance()
    assert done(lambda: (threading.current_thread(), stance()), considerately=False) == (
        threading.current_thread(),
        before,
    )


def test_where_cores_are_idle_everybody_else_comes_first(idle: Callable[[float], None]) -> None:
    idle(LEFT_OVER_CORES)
    before = stance()
    assert done(stance, considerately=True) == (os.SCHED_IDLE, NICENESS)
    assert stance() == before


def test_where_none_is_idle_a_little_is_claimed(idle: Callable[[float], None]) -> None:
    idle(LEFT_OVER_CORES - 0.01)
    assert done(stance, considerately=True) == (os.SCHED_OTHER, NICENESS)


def test_where_the_kernel_refuses_a_little_is_claimed(
    idle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    idle(2.0)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert done(stance, considerately=True) == (os.SCHED_OTHER, NICENESS)


def test_service_that_stands_back_further_is_left_there(idle: Callable[[float], None]) -> None:
    idle(0.0)

    def further() -> int:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS + 2)
        return done(stance, considerately=True)[1]

    # On a thread that ends: there is no way back.
    assert done(further, considerately=True) == NICENESS + 2


def test_context_comes_along_and_errors_come_back(idle: Callable[[float], None]) -> None:
    idle(2.0)
    STORY.set("told")
    assert done(STORY.get, considerately=True) == "told"
    with pytest.raises(ZeroDivisionError):
        done(lambda: 1 // 0, considerately=True)


def test_idle_cores_are_those_that_nobody_uses() -> None:
    """A thread that computes beside takes one of them."""
    only = {min(os.sched_getaffinity(0))}

    def busy() -> float:
        os.sched_setaffinity(0, only)
        stop = threading.Event()

        def spin() -> None:
            while not stop.is_set():
                pass

        spinner = threading.Thread(target=spin)  # on the same core
        spinner.start()
        try:
            return idle_cores(0.5)
        finally:
            stop.set()
            spinner.join()

    assert done(busy, considerately=True) < 0.2
    assert 0 <= idle_cores(0.1) <= len(os.sched_getaffinity(0)) + 0.3
