"""Work that stands back: by whom, how far, and that everybody else is as before."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import pytest

from server import considerate
from server.considerate import LEFT_OVER_CORES, NICENESS, done, idle_cores, relieve

STORY: ContextVar[str] = ContextVar("story")


def stance() -> tuple[int, int]:
    """Policy and niceness of this thread."""
    return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)


def refuse(*_: object) -> None:
    """As a kernel does without privileges."""
    raise PermissionError


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


@contextlib.contextmanager
def standing_back() -> Iterator[tuple[int, Callable[[float], None]]]:
    """A thread in idle time alone, on a core that is kept busy: its number, and what awaits its wait, s."""
    core = {max(os.sched_getaffinity(0))}
    program = f"import os; os.sched_setaffinity(0, {core}); print(flush=True)\nwhile True: pass"
    busy = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    numbers, stop = queue.SimpleQueue[int](), threading.Event()

    def work() -> None:
        os.sched_setaffinity(0, core)
        numbers.put(threading.get_native_id())
        while not stop.wait(0.001):
            pass

    with ThreadPoolExecutor(1) as executor:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            executor.submit(done, work, considerately=True)
            number = numbers.get()
            schedstat = Path(f"/proc/self/task/{number}/schedstat")

            def until_it_waited(seconds: float) -> None:
                while int(schedstat.read_text().split()[1]) < seconds * 1e9:
                    time.sleep(0.01)

            yield number, until_it_waited
        finally:
            stop.set()
            busy.kill()
            busy.communicate()


def leave_idle_time() -> None:
    """Only who may lower niceness can."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_who_starves_gets_a_part_of_a_core(
    idle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has waited for long enough; what does not stand back is left alone."""
    idle(LEFT_OVER_CORES)
    try:
        done(leave_idle_time, considerately=True)
    except PermissionError:
        pytest.skip("no CAP_SYS_NICE and RLIMIT_NICE below 5")
    before = stance()
    with standing_back() as (thread, until_it_waited):
        until_it_waited(0.01)
        relieve(os.getpid())
        assert os.sched_getscheduler(thread) == os.SCHED_IDLE
        monkeypatch.setattr(considerate, "PATIENCE_S", 0.05)
        until_it_waited(0.2)
        relieve(os.getpid())
        now = os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)
    assert now == (os.SCHED_OTHER, NICENESS)
    assert stance() == before


def test_where_there_is_no_way_back_it_goes_on_waiting(
    idle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle(LEFT_OVER_CORES)
    monkeypatch.setattr(considerate, "PATIENCE_S", 0.0)
    with standing_back() as (thread, until_it_waited):
        until_it_waited(0.1)
        with monkeypatch.context() as refusing:
            refusing.setattr(os, "sched_setscheduler", refuse)
            relieve(os.getpid())
        assert os.sched_getscheduler(thread) == os.SCHED_IDLE


def test_process_that_is_gone_needs_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    relieve(gone.pid)


def test_service_that_stands_back_as_a_whole_stays_there(
    idle: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engines have inherited it."""
    idle(LEFT_OVER_CORES)
    monkeypatch.setattr(considerate, "PATIENCE_S", 0.0)
    with standing_back() as (thread, until_it_waited):
        until_it_waited(0.1)
        done(lambda: relieve(os.getpid()), considerately=True)  # by one that stands back as far
        assert os.sched_getscheduler(thread) == os.SCHED_IDLE
