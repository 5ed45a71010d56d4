"""A front end in a spawned process and an engine in this one, over a memfd."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from scheduler import _ring
from tests.scheduler.native.frontend_process import PATIENCE_S, ROWS
from tests.scheduler.native.native_world import NativeWorld

PATIENCE_NS = PATIENCE_S * 1_000_000_000
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def shared() -> Iterator[NativeWorld]:
    world = NativeWorld(frontends=1, slots=12, shared=True)
    yield world
    world.close()


@pytest.fixture
def start(shared: NativeWorld) -> Iterator[Start]:
    """Starts front end 0 as a process; kills it if the test has not."""
    processes: list[subprocess.Popen[str]] = []

    def start(job: str) -> subprocess.Popen[str]:
        assert shared.arena_fd is not None
        fds = (shared.arena_fd, shared.frontend_fds[0], shared.engine_fd)
        script = Path(__file__).with_name("frontend_process.py")
        process = subprocess.Popen(
            [sys.executable, script, *map(str, fds), job],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def await_push(world: NativeWorld) -> None:
    """Until something is pushed after the last look; not every false of a wait is a timeout."""
    until_ns = _ring.now_ns() + PATIENCE_NS
    while not world.engine.wait(PATIENCE_NS, 0):
        assert _ring.now_ns() < until_ns, "nothing was pushed"


def take_questions(world: NativeWorld) -> tuple[list[int], Counter[int]]:
    """What is queued, a batch of at most 8 of it: slots, and rows by request."""
    world.engine.look()
    slots = world.take(8)
    questions = np.empty((len(slots), 2), np.uint32)
    world.arena.gather_inputs(np.array(slots, np.uint32), 0, questions.view(np.uint8))
    answers = (questions[:, :1] * 100 + questions[:, 1:]).astype(np.uint32)
    scatter = _ring.Scatter(world.arena, [("answer", 0, 4, 0)])
    scatter.run(np.array(slots, np.uint32), [answers], len(slots), np.empty(len(slots), np.uint8))
    return slots, Counter(questions[:, 0].tolist())


def test_rows_go_to_the_engine_and_come_back_answered(shared: NativeWorld, start: Start) -> None:
    """The child pushes, the parent takes and completes, the child drains and prints."""
    child = start("ask")
    await_push(shared)
    slots, _ = take_questions(shared)
    assert slots == [2, 0, 1]
    shared.complete(slots[:1])
    shared.complete(slots[1:])
    output, _ = child.communicate(timeout=PATIENCE_S)
    assert json.loads(output) == {"back": [2, 0, 1], "answers": [700, 701, 702]}
    assert child.returncode == 0


@pytest.mark.parametrize("seed", range(4))
def test_partition_of_a_killed_process_serves_the_next(shared: NativeWorld, start: Start, seed: int) -> None:
    """kill -9 somewhere in a flood: the engine saw whole requests, and every slot works again."""
    child = start("flood")
    assert child.stdout is not None
    assert child.stdout.readline() == "pushing\n"
    rows: Counter[int] = Counter()
    for _ in range(random.Random(seed).randrange(3, 300)):
        while not (batch := take_questions(shared))[0]:
            await_push(shared)
        slots, questions = batch
        rows += questions
        shared.complete(slots)
    child.kill()
    child.wait(PATIENCE_S)

    while True:
        slots, questions = take_questions(shared)
        if not slots:
            break
        rows += questions
        shared.complete(slots)
    assert rows, "it was killed before it pushed anything"
    assert set(rows.values()) == {ROWS}, rows

    assert shared.engine.discard(0) == 0
    shared.arena.reset_frontend(0)
    shared.ports[0] = shared.new_frontend(0)
    everything = shared.partition(0)
    assert shared.ports[0].drain() == []
    assert shared.push(0, everything)
    assert shared.take() == everything
    shared.complete(everything)
    assert [slot for slot, *_ in shared.ports[0].drain()] == everything
    assert shared.arena.engine_stats(0)["corrupt"] == 0
