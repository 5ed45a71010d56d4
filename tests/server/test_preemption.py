"""The scheduling policy of a front end's event loop."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.preemption import wake_without_preempting


def policy_after(before: int | None = None) -> int:
    """That a thread has afterwards, which began with this one."""

    def work() -> int:
        if before is not None:
            os.sched_setscheduler(0, before, os.sched_param(0))
        wake_without_preempting()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def test_thread_preempts_nobody() -> None:
    assert policy_after() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_policy_that_somebody_chose_stays() -> None:
    assert policy_after(os.SCHED_IDLE) == os.SCHED_IDLE


def test_sandbox_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert policy_after() == os.SCHED_OTHER
