"""Exported programs whose inputs have dynamic shapes beside the batch."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from scheduler.executor.runner import Array, DeviceSettings, ModelUnusable, Runner, load_runner
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.passage import Passage, signature
from tests.scheduler.executor.programs import program

BUCKETS = (1, 2, 4)
ROWS = torch.arange(12.0).reshape(3, 4)


class Sums(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.cumsum(1), x.sum(1)


class Together(nn.Module):
    """Of two inputs of one length."""

    def forward(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return x * weights, (x * weights).sum(1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Loading sets a number that is the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def sequence(name: str, smallest: int = 1, largest: int = 8) -> TensorSpec:
    return TensorSpec(name, DataType.FP32, (-1,), (largest,), (smallest,))


def dynamic(*inputs: TensorSpec) -> ModelSignature:
    """Of inputs as these → one of the same length, and a number."""
    return signature(
        inputs=inputs,
        outputs=(TensorSpec("y", DataType.FP32, (-1,), (8,)), TensorSpec("sum", DataType.FP32, ())),
    )


def loaded(file: bytes, its: ModelSignature) -> Runner:
    return load_runner("exported_program", file, its, DeviceSettings())


def test_a_program_of_any_length_serves_mixed_lengths() -> None:
    """Up to what the manifest allows, and the program was exported for."""
    its = dynamic(sequence("x"))
    asked = [
        [np.arange(length * rows, dtype=np.float32).reshape(rows, length)]
        for length in (1, 3, 8)
        for rows in (1, 2)
    ]
    with Passage(loaded(program(Sums(), ROWS, columns=Dim("columns", max=8)), its), BUCKETS) as run:
        run.latency.seed(0, run.instance.warm_up(0, BUCKETS, 2))
        answers = run.ask(*asked)
    for answer, (x,) in zip(answers, asked, strict=True):
        assert isinstance(answer, list)
        np.testing.assert_array_equal(answer[0], x.cumsum(1))
        np.testing.assert_array_equal(answer[1], x.sum(1))


def test_two_inputs_may_have_to_be_of_one_length() -> None:
    """A request with two lengths is the model's to refuse."""
    its = dynamic(sequence("x"), sequence("weights"))
    file = program(Together(), ROWS, ROWS + 1, columns=Dim("columns", max=8))
    good: list[Array] = [np.ones((2, 5), np.float32), np.full((2, 5), 3, np.float32)]
    bad: list[Array] = [np.ones((1, 5), np.float32), np.ones((1, 4), np.float32)]
    with Passage(loaded(file, its), BUCKETS) as run:
        run.latency.seed(0, run.instance.warm_up(0, BUCKETS, 2))
        right, wrong = run.ask(good, bad)
    assert not isinstance(wrong, list)
    assert isinstance(right, list)
    np.testing.assert_array_equal(right[1], [15, 15])


@pytest.mark.parametrize(
    ("columns", "smallest", "largest", "message"),
    [
        (Dim("columns", max=7), 1, 8, r"sizes from 0 to 7, not \(1, 8\)"),
        (Dim("columns", min=4, max=8), 3, 8, r"sizes from 4 to 8, not \(3, 8\)"),
        (None, 1, 8, r"\[s\d+, 4\], its manifest says torch.float32 \['rows', \(1, 8\)\]"),
        (Dim("columns", min=4, max=8), 4, 8, ""),
        (Dim("columns"), 1, 1000, ""),
    ],
)
def test_a_program_takes_all_lengths_of_the_manifest(
    columns: object, smallest: int, largest: int, message: str
) -> None:
    """Or is refused when it is loaded."""
    file = program(Sums(), ROWS, columns=columns)
    its = dynamic(sequence("x", smallest, largest))
    if not message:
        loaded(file, its)
        return
    with pytest.raises(ModelUnusable, match=message):
        loaded(file, its)


def test_a_length_that_is_the_batchs_is_refused() -> None:
    """A symbol stands for one size."""
    rows = Dim("rows", max=8)
    file = program(Sums(), torch.ones(4, 4), rows=rows, columns=rows)
    with pytest.raises(ModelUnusable, match=r"its manifest says torch.float32 \['rows', \(1, 8\)\]"):
        loaded(file, dynamic(sequence("x")))
