"""Exported programs of every sort, loaded and run."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from scheduler.executor.exported import _module, _read, load
from scheduler.executor.runner import DeviceSettings, ModelUnusable, Runner, load_runner
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.passage import Passage, signature
from tests.scheduler.executor.programs import BATCH, program

X = TensorSpec("x", DataType.FP32, (4,))
Y = TensorSpec("y", DataType.FP32, (4,))
ROWS = torch.arange(12.0).reshape(3, 4)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.shift = nn.Buffer(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift + torch.tensor(0.5)


class Pair(nn.Module):
    def forward(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, k + 1


class ByName(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": x.sum(1), "unasked": x, "y": x + 1}


class Recurrent(nn.Module):
    """An LSTM both ways and a GRU behind it; the program fills their first states with zeros itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 8, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x.unsqueeze(2))
        steps, _ = self.gru(steps)
        answer: Tensor = steps.squeeze(2) * torch.ones(4)
        return answer


class Branches(nn.Module):
    """Has a graph inside its graph."""

    def forward(self, x: Tensor) -> Tensor:
        above = x.sum() > 0
        return torch.cond(above, lambda a: a + torch.zeros(4), lambda a: a - 1, (x,))  # type: ignore[no-any-return]


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


class Halves(nn.Module):
    """Takes even batches only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2 * 2, 4) if x.shape[0] % 2 == 0 else x + 1


class Positions(nn.Module):
    """Counts in FP32, which is not the precision's business to round."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.arange(4, dtype=torch.float32)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Loading sets a number that is the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def loaded(file: bytes, its: ModelSignature | None = None, precision: str = "fp32") -> Runner:
    """A runner of the file; of x → y where not told otherwise."""
    its = its or signature(inputs=(X,), outputs=(Y,))
    return load_runner("exported_program", file, its, DeviceSettings(precision=precision))


def wanted(module: nn.Module, x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What the module itself answers."""
    with torch.inference_mode():
        answer: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = module.eval()(x).numpy()
    return answer


@pytest.mark.parametrize("module", [Affine, Recurrent, Branches])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_program_answers_like_its_module(module: Callable[[], nn.Module], rows: int) -> None:
    """Bit for bit, for other batch sizes than it was exported with."""
    torch.manual_seed(rows)
    plain, x = module(), torch.randn(rows, 4)
    (y,) = loaded(program(plain, ROWS)).run([x.numpy()])
    np.testing.assert_array_equal(y, wanted(plain, x))


def test_inputs_and_outputs_of_several_types() -> None:
    """In the manifest's order."""
    k = TensorSpec("k", DataType.INT64, ())
    its = signature(inputs=(X, k), outputs=(Y, TensorSpec("l", DataType.INT64, ())))
    runner = loaded(program(Pair(), ROWS, torch.arange(3)), its)
    y, more = runner.run([ROWS.numpy(), np.array([5, 6, 2**40])])
    np.testing.assert_array_equal(y, 2 * ROWS.numpy())
    assert more.tolist() == [6, 7, 2**40 + 1]


def test_outputs_by_name() -> None:
    """A dict is asked for no more than is in the manifest."""
    its = signature(inputs=(X,), outputs=(Y, TensorSpec("total", DataType.FP32, ())))
    y, total = loaded(program(ByName(), ROWS), its).run([ROWS.numpy()])
    np.testing.assert_array_equal(y, ROWS.numpy() + 1)
    np.testing.assert_array_equal(total, ROWS.numpy().sum(1))


@pytest.mark.parametrize("module", [Affine, Recurrent, Branches])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_program_in_another_precision(module: Callable[[], nn.Module], precision: str) -> None:
    """Weights, buffers and what it fills itself are converted: nothing of it is FP32 any more."""
    torch.manual_seed(3)
    plain, x = module(), torch.randn(5, 4)
    runner = loaded(program(plain, ROWS), precision=precision)
    (y,) = runner.run([x.numpy()])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, wanted(plain, x), atol=0.1)
    assert (y != wanted(plain, x)).any()
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    raw = _module(_read(program(plain, ROWS)), DeviceSettings(precision=precision), torch.device("cpu"))
    assert raw.forward(x.to(narrow)).dtype == narrow


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("module", [Affine, Recurrent])
def test_a_program_moves_to_another_device(module: Callable[[], nn.Module], precision: str) -> None:
    """With all that it names a device for. `meta` stands in: it refuses to mix with the CPU as a GPU does."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = DeviceSettings(device="meta", precision=precision)
    moved = _module(_read(program(module(), ROWS)), settings, torch.device("meta"))
    answer = moved.forward(torch.empty(7, 4, dtype=dtype, device="meta"))
    assert (answer.device.type, answer.shape, answer.dtype) == ("meta", (7, 4), dtype)


# -- refusals -----------------------------------------------------------------------------------


def refusal(file: bytes, its: ModelSignature | None = None, precision: str = "fp32") -> str:
    """Why the file is refused when it is loaded."""
    with pytest.raises(ModelUnusable) as refused:
        loaded(file, its, precision)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "content",
    [lambda: b"", lambda: b"garbage", lambda: bytes(100_000), lambda: program(Affine(), ROWS)[:-300]],
    ids=["empty", "garbage", "zeros", "cut"],
)
def test_a_file_that_is_no_program_is_refused(content: Callable[[], bytes]) -> None:
    """In one line that names the model."""
    assert refusal(content()).startswith("torch cannot load the file of m: ")


@pytest.mark.parametrize(
    ("rows", "example", "message"),
    [
        (None, ROWS, "with a batch size of 3; needed is any size"),
        (Dim.AUTO, ROWS[:1], "with a batch size of 1; needed is any size"),
        (Dim("batch", min=3), ROWS, "it was exported for sizes from 3 to int_oo, not rows"),
    ],
    ids=["fixed", "of one", "from three"],
)
def test_a_fixed_batch_is_refused(rows: object, example: Tensor, message: str) -> None:
    """And what to write instead is told."""
    assert message in refusal(program(Affine(), example, rows=rows))


def test_a_limited_batch_is_refused_at_warm_up() -> None:
    """If it is smaller than the batches that are wanted."""
    runner = loaded(program(Affine(), ROWS, rows=Dim("batch", max=4)))
    with Passage(runner) as run:
        run.instance.warm_up(0, (1, 2, 4), rounds=1)
        with pytest.raises(ModelUnusable, match="m fails on 8 rows of zeros: exported for at most 4 rows"):
            run.instance.warm_up(0, (8,), rounds=1)


class Sums(nn.Module):
    """Takes rows of any length."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@pytest.mark.parametrize(("columns", "message"), [(1, ""), (3, ""), (8, ""), (9, "sizes from 0 to 8, not 9")])
def test_other_sizes_may_be_open_too(columns: int, message: str) -> None:
    """The manifest closes them; within what the program was exported for."""
    spec = TensorSpec("x", DataType.FP32, (columns,))
    its = signature(inputs=(spec,), outputs=(spec,))
    file = program(Sums(), ROWS, columns=Dim("columns", max=8))
    if message:
        assert message in refusal(file, its)
    else:
        x = np.arange(5.0 * columns, dtype=np.float32).reshape(5, columns)
        np.testing.assert_array_equal(loaded(file, its).run([x])[0], x.cumsum(1))


class Square(nn.Module):
    """Adds its inputs up, which must have as many columns as rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.t()


def test_a_row_that_grows_with_the_batch_is_refused() -> None:
    """A symbol stands for one size."""
    x = torch.randn(4, 4)
    assert "its manifest says torch.float32 ['rows', 4]" in refusal(
        program(Square(), x, rows=BATCH, columns=BATCH)
    )


def test_a_condition_on_the_batch_is_refused() -> None:
    """Without it, answers would be wrong."""
    message = refusal(program(Halves(), torch.randn(4, 4), rows=Dim.AUTO))
    assert "it was exported on the condition that (L['x'].size()[0] % 2) == 0" in message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((TensorSpec("x", DataType.FP32, (5,)),), "4], its manifest says torch.float32 ['rows', 5]"),
        ((TensorSpec("x", DataType.FP64, (4,)),), "its manifest says torch.float64 ['rows', 4]"),
        ((TensorSpec("x", DataType.FP32, ()),), "its manifest says torch.float32 ['rows']"),
        ((X, TensorSpec("z", DataType.FP32, ())), "it takes 1 inputs, its manifest names 2"),
    ],
    ids=["shape", "type", "dimensions", "count"],
)
def test_other_inputs_than_the_manifest_names_are_refused(
    inputs: tuple[TensorSpec, ...], message: str
) -> None:
    """When it is loaded: the program's own checks are left out of its calls."""
    assert message in refusal(program(Affine(), ROWS), signature(inputs=inputs, outputs=(Y,)))


def test_a_program_in_training_mode_is_refused() -> None:
    """Its answers would be dice."""
    message = refusal(program(Dropping(), ROWS, training=True))
    assert message.endswith("dropout is in training mode: call eval() before the export")
    loaded(program(Dropping(), ROWS))


def test_a_program_with_a_memory_is_refused() -> None:
    """A row's answer would depend on those before it."""
    assert refusal(program(Counting(), ROWS)).endswith("it changes b_calls in every call")


def test_a_program_that_cannot_compute_in_the_precision_is_refused() -> None:
    """When it is loaded, by its name."""
    its = signature(inputs=(X,), outputs=(TensorSpec("y", DataType.FP32, ()),))
    assert refusal(program(Positions(), ROWS), its, "bf16").startswith("m cannot compute in bf16 on cpu: ")
    loaded(program(Positions(), ROWS), its)


def test_the_model_says_what_form_it_has() -> None:
    """There is one."""
    assert (
        load(program(Affine(), ROWS), signature(inputs=(X,), outputs=(Y,)), DeviceSettings()).variant
        == "plain"
    )
