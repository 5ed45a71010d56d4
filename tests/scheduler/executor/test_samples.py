"""Real rows in a file beside a model."""

from pathlib import Path

import numpy as np
import pytest

from scheduler.executor import samples
from scheduler.executor.runner import ModelUnusable
from scheduler.executor.samples import MOST_ROWS, read_samples
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import signature

ITS = signature(
    inputs=(TensorSpec("x", DataType.FP32, (2,)), TensorSpec("which", DataType.INT64, ())),
)
X, WHICH = np.ones((3, 2), np.float32), np.arange(3)


def test_rows_are_read_by_name_and_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", which=WHICH, other=np.ones(9), x=X)
    found = read_samples(tmp_path / "s.npz", ITS)
    assert found is not None
    for array, wanted in zip(found, (X, WHICH), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_no_file_is_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "s.npz", ITS) is None


def test_only_so_many_rows_are_compared(tmp_path: Path) -> None:
    many = MOST_ROWS + 10
    np.savez(tmp_path / "s.npz", x=np.ones((many, 2), np.float32), which=np.arange(many))
    found = read_samples(tmp_path / "s.npz", ITS)
    assert found is not None
    assert [len(array) for array in found] == [MOST_ROWS, MOST_ROWS]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": X}, "which"),
        ({"x": X.astype(np.float64), "which": WHICH}, r"x is float64 \[3, 2\], needed is float32 \[n, 2\]"),
        ({"x": np.ones((3, 4), np.float32), "which": WHICH}, r"x is float32 \[3, 4\], needed"),
        ({"x": X, "which": WHICH[:2]}, r"which is int64 \[2\], needed is int64 \[n\]"),
        ({"x": X[:0], "which": WHICH[:0]}, r"x is float32 \[0, 2\], needed"),
        ({"x": np.array(1, np.float32), "which": WHICH}, r"x is float32 \[1\], needed"),
        ({"x": np.array([[print, 1]] * 3, dtype=object), "which": WHICH}, "allow_pickle=False"),
    ],
    ids=["missing", "type", "shape", "count", "empty", "scalar", "pickled"],
)
def test_what_does_not_fit_is_told_with_the_file(
    tmp_path: Path, arrays: dict[str, np.ndarray], why: str
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ModelUnusable, match=f"s.npz: .*{why}"):
        read_samples(tmp_path / "s.npz", ITS)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(ModelUnusable, match=r"s\.npz: "):
        read_samples(tmp_path / "s.npz", ITS)


def test_a_file_that_would_fill_the_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros take little room in an archive."""
    np.savez_compressed(
        tmp_path / "s.npz", x=np.zeros((100_000, 2), np.float32), which=np.zeros(100_000, int)
    )
    monkeypatch.setattr(samples, "MAX_BYTES", 1_000_000)
    assert (tmp_path / "s.npz").stat().st_size < 100_000
    with pytest.raises(ModelUnusable, match="larger than 1000000 bytes"):
        read_samples(tmp_path / "s.npz", ITS)
