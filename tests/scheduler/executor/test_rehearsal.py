"""What of a form of a model is found before it serves. The forms are Python functions."""

from collections.abc import Sequence

import numpy as np
import pytest

from scheduler.executor.rehearsal import Mismatch, Rehearsal
from scheduler.executor.runner import Array
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import Compute, Function, signature

ITS = signature(
    inputs=(TensorSpec("x", DataType.FP32, (4,)), TensorSpec("which", DataType.INT64, ())),
    outputs=(TensorSpec("y", DataType.FP32, (4,)), TensorSpec("z", DataType.FP32, ())),
)


def model(inputs: Sequence[Array]) -> list[Array]:
    x, _ = inputs
    return [np.tanh(x), x.sum(axis=1)]


def check(
    compute: Compute, precision: str = "fp32", samples: Sequence[Array] | None = None, of: Compute = model
) -> None:
    with np.errstate(all="ignore"):
        Rehearsal(Function(ITS, of), samples).check(Function(ITS, compute), precision)


def off_by(error: float) -> Compute:
    def compute(inputs: Sequence[Array]) -> list[Array]:
        y, z = model(inputs)
        return [y, z * np.float32(1 + error)]

    return compute


def test_the_model_itself_passes() -> None:
    check(model)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_what_is_as_close_as_its_precision_asks_passes(precision: str, error: float) -> None:
    check(off_by(error), precision)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-3), ("bf16", 0.2)])
def test_what_is_further_off_does_not(precision: str, error: float) -> None:
    with pytest.raises(Mismatch, match=r"z is off by .* on 1 rows of noise"):
        check(off_by(error), precision)


def test_a_fixed_batch_size_is_found() -> None:
    """Right for one row, and for the first of several."""

    def first_only(inputs: Sequence[Array]) -> list[Array]:
        y, z = model(inputs)
        return [y, np.full_like(z, z[0])]

    with pytest.raises(Mismatch, match="on 3 rows"):
        check(first_only)


def test_one_that_answers_nan_in_numbers_is_found() -> None:
    """As ONNX Runtime's recurrent layers do."""

    def hides(inputs: Sequence[Array]) -> list[Array]:
        return [np.nan_to_num(each, posinf=1, neginf=-1) for each in model(inputs)]

    with pytest.raises(Mismatch, match="NaN or infinity, on hostile rows"):
        check(hides)


def test_more_nan_than_the_model_answers_is_an_error_of_ordinary_rows_only() -> None:
    """That a form gives up sooner on hostile rows tells the caller enough."""

    def wary(inputs: Sequence[Array]) -> list[Array]:
        y, z = model(inputs)
        return [np.where(np.abs(inputs[0]) > 1e30, np.nan, y), z]

    check(wary)

    def gives_up(inputs: Sequence[Array]) -> list[Array]:
        y, z = model(inputs)
        return [np.where(inputs[0] > 0.5, np.nan, y), z]

    with pytest.raises(Mismatch, match="y is off by nan"):
        check(gives_up)


def test_rows_that_the_model_has_no_answer_to_are_not_compared() -> None:
    """The logarithm of what is around 0; some rows are from 0 to 1."""

    def logs(inputs: Sequence[Array]) -> list[Array]:
        x, _ = inputs
        return [np.log(x), x.sum(axis=1)]

    check(logs, of=logs)


def test_a_model_that_never_answers_cannot_be_compared() -> None:
    def never(inputs: Sequence[Array]) -> list[Array]:
        return [np.full_like(each, np.nan) for each in model(inputs)]

    with pytest.raises(Mismatch, match="nothing can be compared"):
        check(never, of=never)


def test_samples_are_compared_as_well() -> None:
    """Here they have prices around 4000, and a form that is right for noise only."""
    samples: list[Array] = [np.full((5, 4), 4000, np.float32), np.zeros(5, np.int64)]

    def clipped(inputs: Sequence[Array]) -> list[Array]:
        x, _ = inputs
        return [np.tanh(x), np.where(np.abs(x) < 5000, np.clip(x, -100, 100), x).sum(axis=1)]

    check(clipped)
    with pytest.raises(Mismatch, match=r"z is off by .* on the samples"):
        check(clipped, samples=samples)


def test_outputs_in_memory_that_is_used_again_are_compared_as_they_were() -> None:
    """A form may write each answer over the last."""
    kept = {rows: [np.empty((rows, 4), np.float32), np.empty(rows, np.float32)] for rows in range(1, 20)}

    def again(inputs: Sequence[Array]) -> list[Array]:
        mine = kept[len(inputs[0])]
        for memory, answer in zip(mine, model(inputs), strict=True):
            memory[:] = answer
        return mine

    check(again)


def test_noise_of_whole_numbers_is_zero() -> None:
    """Which no table is too small for."""
    x, which = Rehearsal(Function(ITS, model)).noise(64)
    assert x.shape == (64, 4)
    assert x.dtype == np.float32
    assert which.dtype == np.int64
    assert not which.any()
    assert (x[::2] >= 0).all()
    assert (x[1::2] < 0).any()
