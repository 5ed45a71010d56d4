"""The shared memory itself: making it, finding it, and refusing what is none."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from scheduler.arena import Arena, Dimensions

DIMENSIONS = Dimensions(
    frontends=2, models=3, slots_per_frontend=4, input_row_bytes=100, output_row_bytes=65, engines=1
)


@pytest.fixture
def created() -> Iterator[tuple[Arena, int]]:
    arena, fd = Arena.create(DIMENSIONS)
    yield arena, fd
    os.close(fd)


def changed(**parts: int) -> Dimensions:
    """Good dimensions but for these."""
    return Dimensions(**{**DIMENSIONS.as_kwargs(), **parts})


def test_rows_are_whole_cache_lines() -> None:
    """100 and 65 bytes take 128 each; one row for each slot of each front end."""
    arena = Arena.anonymous(DIMENSIONS)
    assert arena.input_rows.shape == arena.output_rows.shape == (8, 128)
    assert arena.input_rows.ctypes.data % 64 == arena.output_rows.ctypes.data % 64 == 0
    native = arena.native
    assert (native.frontends, native.models, native.slots_per_frontend, native.slots) == (2, 3, 4, 8)


def test_rows_share_no_byte() -> None:
    """Each filled with a number of its own, inputs and outputs, all of them are still there."""
    arena = Arena.anonymous(DIMENSIONS)
    for slot in range(8):
        arena.input_rows[slot] = slot
        arena.output_rows[slot] = 100 + slot
    for slot in range(8):
        assert set(arena.input_rows[slot]) == {slot}
        assert set(arena.output_rows[slot]) == {100 + slot}


def test_attached_arena_is_the_same_memory(created: tuple[Arena, int]) -> None:
    """What one writes, the other reads, and both agree on the layout."""
    arena, fd = created
    other = Arena.attach(fd)
    arena.input_rows[5] = 7
    other.output_rows[2] = 9
    assert set(other.input_rows[5]) == {7}
    assert set(arena.output_rows[2]) == {9}
    assert other.native.slots == arena.native.slots
    arena.native.reset_frontend(1)
    assert (other.native.epoch(0), other.native.epoch(1)) == (arena.native.epoch(0), arena.native.epoch(1))


def test_another_process_attaches_by_descriptor(created: tuple[Arena, int]) -> None:
    """Which it inherits only when it is passed on: there is no name to find it by."""
    arena, fd = created
    code = (
        "import sys; from scheduler.arena import Arena\n"
        "arena = Arena.attach(int(sys.argv[1])); arena.output_rows[3] = arena.input_rows[3] + 1"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    arena.input_rows[3] = 41
    command = [sys.executable, "-c", code, str(fd)]
    subprocess.run(command, pass_fds=(fd,), env=environment, check=True)
    assert set(arena.output_rows[3]) == {42}
    assert not os.get_inheritable(fd)


def test_arena_outlives_its_descriptor() -> None:
    """A mapping is enough; nothing has to be cleaned up."""
    arena, fd = Arena.create(DIMENSIONS)
    other = Arena.attach(fd)
    os.close(fd)
    arena.input_rows[0] = 3
    assert set(other.input_rows[0]) == {3}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("frontends", 0),
        ("frontends", 65),
        ("engines", 0),
        ("engines", 33),
        ("models", 0),
        ("models", 65),
        ("slots_per_frontend", 0),
        ("slots_per_frontend", 65537),
        ("input_row_bytes", 0),
        ("input_row_bytes", 2**30 + 1),
        ("output_row_bytes", 0),
    ],
)
def test_bad_dimension_is_named(part: str, value: int) -> None:
    """With its value and what is allowed, before any memory is taken."""
    with pytest.raises(ValueError, match=rf"^{part} is {value}, allowed is 1 to \d+$"):
        Arena.anonymous(changed(**{part: value}))
    with pytest.raises(ValueError, match=part):
        Arena.create(changed(**{part: value}))


@pytest.fixture
def memory() -> Iterator[int]:
    """The descriptor of a memfd, empty."""
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def test_empty_file_is_no_arena(memory: int) -> None:
    """There is nothing to map."""
    with pytest.raises(ValueError, match="empty"):
        Arena.attach(memory)


@pytest.mark.parametrize("size", [1, 64, 4096, 1 << 20])
def test_zeros_are_no_arena(memory: int, size: int) -> None:
    """Of any size: the magic number is missing."""
    os.ftruncate(memory, size)
    with pytest.raises(ValueError, match=r"^not a tickring arena$"):
        Arena.attach(memory)


def test_arena_of_another_layout_is_refused(created: tuple[Arena, int]) -> None:
    """An older or newer version of this code made it."""
    _, fd = created
    header = np.frombuffer(mmap.mmap(fd, os.fstat(fd).st_size), np.uint32)
    header[2] += 1  # behind the 64 bits of the magic number
    with pytest.raises(ValueError, match=r"^arena layout version \d+, this build speaks \d+$"):
        Arena.attach(fd)


def test_arena_that_was_cut_is_refused(created: tuple[Arena, int]) -> None:
    """Its header promises more memory than there is, and touching that would be fatal."""
    _, fd = created
    os.ftruncate(fd, os.fstat(fd).st_size - 4096)
    with pytest.raises(ValueError, match=r"^arena of \d+ bytes, its header says \d+"):
        Arena.attach(fd)
