"""What `scheduler._ring` takes from Python and gives back: types, bounds, messages, lifetimes."""

import ast
import gc
import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from tests.scheduler.native.native_world import ENGINE, ERROR, RESULT, NativeWorld, is_readable, uint32

MS = 1_000_000
LONG_NS = 20_000 * MS
DIMENSIONS = {
    "frontends": 2,
    "engines": 1,
    "models": 1,
    "slots_per_frontend": 4,
    "input_row_bytes": 64,
    "output_row_bytes": 64,
}


def pages(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("frontends", 0, "1 to 64"),
        ("frontends", 65, "1 to 64"),
        ("engines", 0, "1 to 32"),
        ("engines", 33, "1 to 32"),
        ("models", 0, "1 to 64"),
        ("models", 65, "1 to 64"),
        ("slots_per_frontend", 0, "1 to 65536"),
        ("slots_per_frontend", 65537, "1 to 65536"),
        ("input_row_bytes", 0, "1 to 1073741824"),
        ("output_row_bytes", 2**30 + 1, "1 to 1073741824"),
    ],
)
def test_dimension_out_of_range_is_named_with_what_is_allowed(name: str, value: int, allowed: str) -> None:
    """The message has the name, the value and the range, from both functions that take dimensions."""
    message = f"^{name} is {value}, allowed is {allowed}$"
    with pytest.raises(ValueError, match=message):
        _ring.arena_bytes(**DIMENSIONS | {name: value})
    with pytest.raises(ValueError, match=message):
        _ring.Arena.format(pages(4096), **DIMENSIONS | {name: value})


def test_largest_dimensions_do_not_overflow() -> None:
    """Every dimension at its limit: the slabs are all but a few hundred gigabytes of it."""
    most = _ring.arena_bytes(
        frontends=64,
        engines=32,
        models=64,
        slots_per_frontend=65536,
        input_row_bytes=2**30,
        output_row_bytes=2**30,
    )
    slabs = 2 * 64 * 65536 * 2**30
    assert slabs < most < slabs + 2**40


def test_buffer_that_cannot_hold_an_arena_is_refused() -> None:
    """Too small and off a page are ValueErrors, what is not a writable run of bytes a TypeError."""
    size = _ring.arena_bytes(**DIMENSIONS)
    with pytest.raises(ValueError, match=f"arena of {size - 1} bytes, needed are {size}"):
        _ring.Arena.format(pages(size)[:-1], **DIMENSIONS)
    with pytest.raises(ValueError, match="does not start on a page of 4096 bytes"):
        _ring.Arena.format(pages(size + 64)[64:], **DIMENSIONS)
    with pytest.raises(ValueError, match="does not start on a page"):
        _ring.Arena.attach(pages(8192)[8:])
    wrong: list[Any] = [bytes(size), pages(size).view(np.float32), pages(2 * size)[::2], None, [0] * size]
    for buffer in wrong:
        with pytest.raises(TypeError):
            _ring.Arena.format(buffer, **DIMENSIONS)
        with pytest.raises(TypeError):
            _ring.Arena.attach(buffer)


def test_attach_takes_nothing_but_an_arena_of_this_layout() -> None:
    """Magic, layout version, dimensions and size are checked before anything is followed."""
    size = _ring.arena_bytes(**DIMENSIONS)
    buffer = pages(size)
    with pytest.raises(ValueError, match="not a tickring arena"):
        _ring.Arena.attach(buffer)
    _ring.Arena.format(buffer, **DIMENSIONS)
    attached = _ring.Arena.attach(buffer)
    assert {name: getattr(attached, name) for name in DIMENSIONS} == DIMENSIONS
    assert attached.slots == 8

    header = buffer[:64].view(np.uint32)
    assert header[2] == 4
    header[2] = 1
    with pytest.raises(ValueError, match="layout version 1, this build speaks 4"):
        _ring.Arena.attach(buffer)
    header[2] = 4
    header[4] = 65
    with pytest.raises(ValueError, match="frontends is 65"):
        _ring.Arena.attach(buffer)
    header[4] = 64
    with pytest.raises(ValueError, match=f"its header says {size}, its dimensions need"):
        _ring.Arena.attach(buffer)
    header[4] = 2
    with pytest.raises(ValueError, match=f"arena of {size - 4096} bytes, its header says {size}"):
        _ring.Arena.attach(buffer[:-4096])
    with pytest.raises(ValueError, match="not a tickring arena"):
        _ring.Arena.attach(buffer[:100])
    buffer[0] ^= 1
    with pytest.raises(ValueError, match="not a tickring arena"):
        _ring.Arena.attach(buffer)


def test_port_of_an_unknown_end_is_refused(native: NativeWorld) -> None:
    """A front end or engine that the arena lacks, and a list of eventfds of the wrong length."""
    bad: list[tuple[str, Callable[[], object]]] = [
        ("frontend is 2, allowed is 0 to 1", lambda: _ring.FrontendPort(native.arena, 2, 0, [0])),
        ("engine eventfds is 2, allowed is 1", lambda: _ring.FrontendPort(native.arena, 0, 0, [0, 0])),
        ("engine is 1, allowed is 0 to 0", lambda: _ring.EnginePort(native.arena, 1, 0, [0, 0])),
        ("frontend eventfds is 1, allowed is 2", lambda: _ring.EnginePort(native.arena, 0, 0, [0])),
        ("frontend is 2", lambda: native.arena.reset_frontend(2)),
        ("frontend is 2", lambda: native.arena.epoch(2)),
        ("frontend is 2", lambda: native.engine.discard(2)),
        ("engine is 1", lambda: native.arena.reset_engine(1)),
        ("engine is 1", lambda: native.arena.engine_stats(1)),
        ("eventfd 99999: Bad file descriptor", lambda: _ring.FrontendPort(native.arena, 0, 99999, [0])),
        ("eventfd -1: Bad file descriptor", lambda: _ring.EnginePort(native.arena, 0, 0, [0, -1])),
    ]
    for message, call in bad:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("engine", 1, "engine is 1, allowed is 0 to 0"),
        ("model", 1, "model is 1, allowed is 0 to 0"),
        ("cls", 5, "class is 5, allowed is 0 to 4"),
        ("slots", [4, 3], "slot is 3, allowed is 4 to 7"),
        ("slots", [4, 8], "slot is 8, allowed is 4 to 7"),
        ("slots", [2**32 - 1], "slot is 4294967295, allowed is 4 to 7"),
    ],
)
def test_bad_push_is_named_and_hands_nothing_over(
    native: NativeWorld, field: str, value: object, message: str
) -> None:
    """Also not the good slots before the bad one."""
    good: dict[str, Any] = {
        "engine": ENGINE,
        "model": 0,
        "cls": 0,
        "slots": [4],
        "key": 1,
        "enqueued_ns": 1,
        "deadline_ns": _ring.NO_DEADLINE,
        "request": 1,
        "exclusive": False,
    }
    with pytest.raises(ValueError, match=message):
        native.ports[1].push(**good | {field: value})
    assert native.engine.look() == []
    assert native.ports[1].push(**good)


@pytest.mark.parametrize("slots", [[-1], [2**32], [4.0], ["4"], 4, None])
def test_slots_that_are_no_slot_numbers_are_a_type_error(native: NativeWorld, slots: Any) -> None:
    """Nothing is rounded, cut to 32 bits or parsed."""
    with pytest.raises(TypeError):
        native.push(1, slots)
    assert native.take() == []


def test_cancel_of_a_slot_of_another_front_end_is_refused(native: NativeWorld) -> None:
    """A front end reaches into its own partition only."""
    native.push(0, [3])
    with pytest.raises(ValueError, match="slot is 3, allowed is 4 to 7"):
        native.ports[1].cancel(3)
    assert native.take() == [3]


@pytest.mark.parametrize(
    "into",
    [
        np.zeros(4, np.int64),
        np.zeros(4, np.int32),
        np.zeros(8, np.uint32)[::2],
        np.zeros((2, 2), np.uint32),
        np.frombuffer(bytes(16), np.uint32),
        [0, 0],
    ],
    ids=["int64", "int32", "strided", "2d", "read-only", "list"],
)
def test_take_fills_only_an_array_it_need_not_copy(native: NativeWorld, into: Any) -> None:
    """What is taken into a converted copy would be lost."""
    native.push(0, [1])
    with pytest.raises(TypeError):
        native.engine.take(0, 0, 0, into)
    assert native.take() == [1]


def test_take_of_an_unknown_model_or_class_is_refused(native: NativeWorld) -> None:
    """The mask has a bit for each class and no more."""
    with pytest.raises(ValueError, match="model is 1, allowed is 0 to 0"):
        native.take(model=1)
    with pytest.raises(ValueError, match="classes is 32, allowed is 0 to 31"):
        native.take(classes=0b100000)
    with pytest.raises(TypeError):
        native.take(classes=-1)


def test_bad_completion_hands_nothing_back(native: NativeWorld) -> None:
    """Neither the good slots before the bad one, nor a signal."""
    native.push(0, [0, 1])
    native.take()
    assert native.ports[0].arm()
    bad: list[tuple[type[Exception], str, Any, Any]] = [
        (ValueError, "slot is 8, allowed is 0 to 7", uint32(0, 8), [RESULT, RESULT]),
        (ValueError, "outcome is 0, allowed is 1 to 5", uint32(0, 1), [RESULT, 0]),
        (ValueError, "outcome is 6, allowed is 1 to 5", uint32(0, 1), [RESULT, 6]),
        (ValueError, "outcomes is 1, allowed is 2", uint32(0, 1), [RESULT]),
        (TypeError, "incompatible", np.array([0, 1]), [RESULT, RESULT]),
        (TypeError, "incompatible", np.array([0.0, 1.0]), [RESULT, RESULT]),
    ]
    for error, message, slots, outcomes in bad:
        with pytest.raises(error, match=message):
            native.engine.complete(slots, np.array(outcomes, np.uint8), 0, 0, 0, 0, 0)
    with pytest.raises(TypeError):
        native.engine.complete(uint32(0, 1), np.array([1, 1]), 0, 0, 0, 0, 0)
    assert native.ports[0].drain() == []
    assert not is_readable(native.frontend_fds[0])


def test_drain_tells_everything_about_an_end_in_this_order(native: NativeWorld) -> None:
    """Slot, outcome, enqueued, dispatched, compute start, compute end, batch, its size, its bucket."""
    native.ports[1].push(ENGINE, 0, 2, [6, 4], 900, 111, _ring.NO_DEADLINE, 1, False)
    assert native.take() == [6, 4]
    native.engine.complete(
        uint32(4, 6),
        np.array([ERROR, RESULT], np.uint8),
        dispatched_ns=222,
        compute_start_ns=333,
        compute_end_ns=444,
        batch=55,
        bucket=8,
    )
    assert native.ports[1].drain() == [
        (4, ERROR, 111, 222, 333, 444, 55, 2, 8),
        (6, RESULT, 111, 222, 333, 444, 55, 2, 8),
    ]
    assert native.ports[1].drain() == []


def test_look_reports_each_class_that_waits(native: NativeWorld) -> None:
    """Depth over both front ends, smallest key, oldest enqueue time, soonest deadline or None."""
    native.ports[0].push(ENGINE, 0, 3, [0, 1], 50, 20, _ring.NO_DEADLINE, 1, False)
    assert native.engine.look() == [(0, 3, 2, 50, 20, None)]
    native.ports[1].push(ENGINE, 0, 3, [4], 60, 10, 70, 1, False)
    native.ports[1].push(ENGINE, 0, 1, [5], 40, 40, 80, 2, False)
    assert native.engine.look() == [(0, 1, 1, 40, 40, 80), (0, 3, 3, 50, 10, 70)]


def test_each_port_keeps_the_memory_alive(native: NativeWorld) -> None:
    """The buffer lives as long as the last object that points into it, and no longer."""

    def frontend(arena: _ring.Arena) -> Callable[[], object]:
        port = _ring.FrontendPort(arena, 0, native.frontend_fds[0], [native.engine_fd])
        return lambda: port.push(ENGINE, 0, 0, [3], 1, 1, _ring.NO_DEADLINE, 1, False)

    def engine(arena: _ring.Arena) -> Callable[[], object]:
        return _ring.EnginePort(arena, 0, native.engine_fd, native.frontend_fds).look

    for make in (frontend, engine):
        buffer = pages(_ring.arena_bytes(**DIMENSIONS))
        alive = weakref.ref(buffer)
        arena = _ring.Arena.format(buffer, **DIMENSIONS)
        del buffer
        gc.collect()
        assert alive() is not None
        touch_memory = make(arena)
        del arena
        gc.collect()
        assert alive() is not None
        touch_memory()
        del touch_memory
        gc.collect()
        assert alive() is None


def test_wait_returns_at_once_for_a_push_after_the_look(native: NativeWorld) -> None:
    """Sleeping or spinning; a push before the look is no news."""
    for spin_ns in (0, LONG_NS):
        native.push(0, [0])
        native.engine.look()
        assert not native.engine.wait(0, 0)
        native.push(1, [4])
        start_ns = _ring.now_ns()
        assert native.engine.wait(LONG_NS, spin_ns)
        assert _ring.now_ns() - start_ns < LONG_NS
        native.complete(native.take())
        for port in native.ports:
            port.drain()


def test_wake_ends_the_next_wait_and_only_that(native: NativeWorld) -> None:
    """However often it was called; it is no push, so the wait is not true."""
    native.engine.wake()
    native.engine.wake()
    start_ns = _ring.now_ns()
    assert not native.engine.wait(LONG_NS, 0)
    assert _ring.now_ns() - start_ns < LONG_NS
    assert not native.engine.wait(20 * MS, 0)
    assert _ring.now_ns() - start_ns >= 20 * MS


@pytest.mark.parametrize("ending", ["push", "wake"])
def test_blocked_wait_lets_other_threads_run_and_is_ended_by_them(native: NativeWorld, ending: str) -> None:
    """wait() releases the GIL, or this thread could not end it."""
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(native.engine.wait(LONG_NS, 0)))
    start_ns = _ring.now_ns()
    waiting.start()
    while native.arena.engine_stats(ENGINE)["sleeps"] == 0:
        assert _ring.now_ns() - start_ns < LONG_NS
        os.sched_yield()
    if ending == "push":
        native.push(0, [0])
    else:
        native.engine.wake()
    waiting.join()
    assert woken == [ending == "push"]
    assert _ring.now_ns() - start_ns < LONG_NS


@pytest.mark.parametrize("spin_ns", [0, 5 * MS, LONG_NS])
def test_wait_without_news_lasts_its_timeout(native: NativeWorld, spin_ns: int) -> None:
    """Never less, and spinning is part of it."""
    start_ns = _ring.now_ns()
    assert not native.engine.wait(30 * MS, spin_ns)
    assert 30 * MS <= _ring.now_ns() - start_ns < LONG_NS


def test_front_end_does_not_fall_asleep_over_a_completion(native: NativeWorld) -> None:
    """arm() says no when slots came back since the last drain; only an armed front end is signalled."""
    port, fd = native.ports[0], native.frontend_fds[0]
    native.push(0, [0, 1])
    native.take()
    native.complete([0])
    assert not port.arm()
    assert not is_readable(fd)
    assert len(port.drain()) == 1
    assert port.arm()
    native.complete([1])
    assert is_readable(fd)
    port.woken()
    assert not is_readable(fd)
    assert len(port.drain()) == 1


def test_each_front_end_is_signalled_for_its_own_slots_only(native: NativeWorld) -> None:
    """One completion call over both partitions; the one that sleeps is woken."""
    native.push(0, [0])
    native.push(1, [4])
    taken = native.take()
    assert native.ports[1].arm()
    native.complete(taken[:1])
    assert not is_readable(native.frontend_fds[1])
    native.complete(taken[1:])
    assert is_readable(native.frontend_fds[1])
    assert not is_readable(native.frontend_fds[0])


def declarations(stub: Path) -> str:
    """What a stub says, whoever formatted it."""
    tree = ast.parse(stub.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = " ".join(node.value.split())
    return ast.unparse(tree)


def test_checked_in_stub_is_what_the_module_generates(tmp_path: Path) -> None:
    """`python -m nanobind.stubgen -m scheduler._ring -o scheduler/_ring.pyi` brings it up to date."""
    stub = tmp_path / "_ring.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "scheduler._ring", "-o", stub],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    checked_in = Path(__file__).parents[3] / "scheduler" / "_ring.pyi"
    assert declarations(stub) == declarations(checked_in)
