"""Rows between the slots and the arrays of an instance: copied by index, at an offset, bounds-checked."""

from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from tests.scheduler.native.native_world import NativeWorld, uint32


def rows_of(native: NativeWorld, slab: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return native.buffer[slab : slab + 8 * 64].reshape(8, 64)


def test_gather_copies_the_named_rows_from_the_offset(native: NativeWorld) -> None:
    """Row i of the result is that of slots[i]; rows of the array past the slots stay as they are."""
    inputs = rows_of(native, native.arena.input_slab)
    inputs[:] = np.arange(8 * 64).reshape(8, 64) % 251
    into = np.full((4, 10), 255, np.uint8)
    native.arena.gather_inputs(uint32(5, 0, 5), 54, into)
    np.testing.assert_array_equal(into[:3], inputs[[5, 0, 5], 54:])
    assert (into[3] == 255).all()


def test_scatter_writes_the_named_rows_at_the_offset_and_nothing_else(native: NativeWorld) -> None:
    """Padding is left out, and a read-only source will do."""
    outputs = rows_of(native, native.arena.output_slab)
    expected = outputs.copy()
    rows = np.arange(1, 41, dtype=np.uint8).reshape(4, 10)
    rows.flags.writeable = False
    counts = np.array([[3], [4], [5], [6]], "<i4")
    expected[[7, 2], 54:] = rows[:2]
    expected[[7, 2], 8:12] = counts[:2].view(np.uint8)
    outcomes = np.zeros(3, np.uint8)
    scatter = _ring.Scatter(native.arena, [("bytes", 54, 10, 0), ("count", 8, 4, 0)])
    scatter.run(uint32(7, 2), (rows, counts), 4, outcomes)
    np.testing.assert_array_equal(outputs, expected)
    assert outcomes.tolist() == [1, 1, 0]
    assert not rows_of(native, native.arena.input_slab).any()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scatter_finds_the_rows_that_are_not_finite(native: NativeWorld, dtype: Any, bad: float) -> None:
    """In any place of a row that must be finite; elsewhere, and in the padding, anything goes."""
    size = np.dtype(dtype).itemsize
    extremes = [np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).smallest_subnormal, -0.0]
    checked = np.tile(np.array(extremes, dtype), (6, 1))
    for position in range(4):
        checked[position, position] = bad
    checked[5, 0] = bad
    free = np.full((6, 1), bad, dtype)
    outcomes = np.zeros(5, np.uint8)
    scatter = _ring.Scatter(native.arena, [("checked", 0, 4 * size, size), ("free", 40, size, 0)])
    scatter.run(uint32(0, 1, 2, 3, 4), [checked, free], 6, outcomes)
    assert outcomes.tolist() == [3, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([("x", 60, 5, 0)], r"offset \+ row bytes is 65, allowed is 0 to 64"),
        ([("x", 0, 8, 0), ("y", 65, 0, 0)], "offset is 65, allowed is 0 to 64"),
        ([("x", 2**64 - 4, 8, 0)], "offset is 18446744073709551612, allowed is 0 to 64"),
        ([("x", 0, 9, 3)], "float_bytes is 3, allowed is 0, 2, 4 or 8"),
    ],
)
def test_scatter_refuses_places_outside_of_a_row(
    native: NativeWorld, places: list[tuple[str, int, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _ring.Scatter(native.arena, places)


EIGHT = np.zeros((2, 8), np.uint8)


@pytest.mark.parametrize(
    ("slots", "outputs", "bucket", "message"),
    [
        ((0, 1), [EIGHT, np.zeros((1, 4), np.uint8)], 2, "y has 1 rows, the batch has 2"),
        ((0,), [EIGHT, np.zeros((3, 4), np.uint8)], 2, "y has 3 rows, the batch has 2"),
        ((0,), [EIGHT, np.zeros((), np.uint8)], 2, "y has 0 rows, the batch has 2"),
        ((0,), [EIGHT, np.zeros((2, 5), np.uint8)], 2, "y has 10 bytes, allowed is 8"),
        ((0,), [EIGHT], 2, "outputs is 1, allowed is 2"),
        ((0, 1, 2), [EIGHT, EIGHT], 2, "bucket is 2, allowed is 3"),
        ((7, 8), [EIGHT, EIGHT[:, :4].copy()], 2, "slot is 8, allowed is 0 to 7"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_before_any_is_copied(
    native: NativeWorld, slots: tuple[int, ...], outputs: list[Any], bucket: int, message: str
) -> None:
    native.buffer[native.arena.input_slab :] = 9
    scatter = _ring.Scatter(native.arena, [("x", 0, 8, 0), ("y", 8, 4, 0)])
    with pytest.raises(ValueError, match=message):
        scatter.run(uint32(*slots), outputs, bucket, np.zeros(4, np.uint8))
    assert (native.buffer[native.arena.input_slab :] == 9).all()


def test_scatter_refuses_too_few_outcomes(native: NativeWorld) -> None:
    scatter = _ring.Scatter(native.arena, [("x", 0, 8, 0)])
    with pytest.raises(ValueError, match="outcomes is 1, allowed is 2"):
        scatter.run(uint32(0, 1), [EIGHT], 2, np.zeros(1, np.uint8))


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 16), np.uint8)[:, ::2], np.zeros((8, 2), np.uint8).T, [1], None]
)
def test_scatter_refuses_what_is_no_contiguous_array(native: NativeWorld, rows: Any) -> None:
    scatter = _ring.Scatter(native.arena, [("x", 0, 8, 0)])
    with pytest.raises(TypeError, match="x is no contiguous array"):
        scatter.run(uint32(0), [rows], 1, np.zeros(1, np.uint8))


@pytest.mark.parametrize(
    ("slots", "offset", "shape", "message"),
    [
        ((0, 1), 0, (1, 8), "rows is 1, allowed is 2"),
        ((0,), 0, (1, 65), r"offset \+ row bytes is 65, allowed is 0 to 64"),
        ((0,), 60, (1, 5), r"offset \+ row bytes is 65, allowed is 0 to 64"),
        ((0,), 65, (1, 0), "offset is 65, allowed is 0 to 64"),
        ((0,), 2**64 - 4, (1, 8), "offset is 18446744073709551612, allowed is 0 to 64"),
        ((7, 8), 0, (2, 8), "slot is 8, allowed is 0 to 7"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_any_is_copied(
    native: NativeWorld, slots: tuple[int, ...], offset: int, shape: tuple[int, int], message: str
) -> None:
    """The offset that wraps around 64 bits too."""
    native.buffer[native.arena.input_slab :] = 9
    rows = np.zeros(shape, np.uint8)
    with pytest.raises(ValueError, match=message):
        native.arena.gather_inputs(uint32(*slots), offset, rows)
    assert not rows.any()
    assert (native.buffer[native.arena.input_slab :] == 9).all()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, 8), np.float32),
        np.zeros((1, 8), np.int8),
        np.zeros(8, np.uint8),
        np.zeros((1, 16), np.uint8)[:, ::2],
        np.zeros((8, 2), np.uint8).T,
    ],
    ids=["float32", "int8", "1d", "strided", "transposed"],
)
def test_rows_that_would_need_a_copy_are_refused(native: NativeWorld, rows: Any) -> None:
    """Gathering into a converted copy would lose the rows without a word."""
    with pytest.raises(TypeError):
        native.arena.gather_inputs(uint32(0), 0, rows)


def test_gather_refuses_a_read_only_destination(native: NativeWorld) -> None:
    rows = np.zeros((1, 8), np.uint8)
    rows.flags.writeable = False
    with pytest.raises(TypeError):
        native.arena.gather_inputs(uint32(0), 0, rows)
