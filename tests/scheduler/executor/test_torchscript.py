"""TorchScript files of every sort, loaded and run."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scheduler.executor.runner import DeviceSettings, ModelUnusable, Runner, load_runner
from scheduler.executor.torch_runner import TorchRunner
from scheduler.partition import Outcome
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.passage import Passage, signature

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

X = TensorSpec("x", DataType.FP32, (2,))
A = TensorSpec("a", DataType.FP32, (2,))
B = TensorSpec("b", DataType.FP32, ())
INPUT = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x.sum(1)


class ByName(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"b": x.sum(1), "unasked": x, "a": x + 1}


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).t().contiguous().t()


class Trained(nn.Module):
    """Would drop everything while training."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(2))
        self.dropout = nn.Dropout(0.999999)

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.dropout(x + self.shift)
        return shifted


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 1000).any()):
            raise RuntimeError("more than 1000")
        return x + 1


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Loading sets a number that is the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def archive(module: nn.Module) -> bytes:
    """A TorchScript file."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def loaded(module: nn.Module, its: ModelSignature, threads: int = 1, precision: str = "fp32") -> Runner:
    """A runner of the module's file."""
    settings = DeviceSettings(threads=threads, precision=precision)
    return load_runner("torchscript", archive(module), its, settings)


def one_output() -> ModelSignature:
    """x → a."""
    return signature(inputs=(X,), outputs=(A,))


@pytest.mark.parametrize("module", [Single, Transposed, Trained])
def test_single_tensor(module: Callable[[], nn.Module]) -> None:
    """Contiguous, without gradients, and as in evaluation, whatever it was saved as."""
    runner = loaded(module(), one_output())
    (a,) = runner.run([INPUT])
    np.testing.assert_array_equal(a, INPUT + 1)
    assert a.flags.c_contiguous


@pytest.mark.parametrize("module", [Pair, ByName])
def test_several_tensors_in_the_manifests_order(module: Callable[[], nn.Module]) -> None:
    """A tuple has that order; a dict is asked by name, for no more than is in the manifest."""
    runner = loaded(module(), signature(inputs=(X,), outputs=(A, B)))
    a, b = runner.run([INPUT])
    np.testing.assert_array_equal(a, INPUT + 1)
    np.testing.assert_array_equal(b, INPUT.sum(1))


@pytest.mark.parametrize("data_type", DataType)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_every_type_passes_unchanged(data_type: DataType, shape: tuple[int, ...]) -> None:
    """From a slot through torch into a slot."""
    spec = TensorSpec("x", data_type, shape)
    runner = loaded(Identity(), signature(inputs=(spec,), outputs=(spec,)))
    x = np.arange(5 * max(1, *shape, 1)).reshape(5, *shape).astype(data_type.dtype)
    with Passage(runner) as run:
        run.instance.warm_up(0, (1, 2, 4, 8), rounds=1)
        (answer,) = run.ask([x])
    assert not isinstance(answer, Outcome)
    assert answer[0].tobytes() == x.tobytes()


def test_inputs_are_not_copied_and_not_kept() -> None:
    """The model reads the staging rows themselves: what they hold at the time of a run counts."""
    runner = loaded(Single(), one_output())
    staging = INPUT.copy()
    (first,) = runner.run([staging])
    staging[:] = 0
    (second,) = runner.run([staging])
    assert first.tolist() == (INPUT + 1).tolist()
    assert second.tolist() == np.ones_like(INPUT).tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_threads_of_an_instance(count: int) -> None:
    """As the settings say."""
    loaded(Single(), one_output(), threads=count)
    assert torch.get_num_threads() == count


def test_error_of_the_model_fails_the_rows_to_blame() -> None:
    """As in Python: the others get bit for bit what they get without them, and the instance goes on."""
    noise = np.random.default_rng(5)
    values = noise.normal(0, 100, (8, 2)).astype(np.float32)
    values[[2, 6], 1] = 1001
    with Passage(loaded(Picky(), one_output())) as run:
        run.instance.warm_up(0, (1, 2, 4, 8), rounds=3)
        answers = run.ask(*[[values[row : row + 1]] for row in range(8)])
        ((batch, error, extent),) = run.failures
        (afterwards,) = run.ask([INPUT])
    assert "more than 1000" in str(error)
    assert (len(batch.slots), extent.guilty, extent.undecided) == (8, 2, 0)
    assert not isinstance(afterwards, Outcome)
    for row, answer in enumerate(answers):
        if row in (2, 6):
            assert answer is Outcome.ERROR
        else:
            assert not isinstance(answer, Outcome)
            assert answer[0].tobytes() == (values[row : row + 1] + 1).tobytes()


# -- precision ----------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Makes its first state itself, in the dtype of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x.unsqueeze(1))
        answer: Tensor = self.head(steps[:, 0])
        return answer


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_weights_are_rounded_to_the_precision(precision: str, bits: int) -> None:
    """And the answers come back as the manifest says."""
    module = Trained()
    module.shift.data.fill_(1 + 2.0**-bits)  # half a unit above 1: rounds to 1
    (a,) = loaded(module, one_output(), precision=precision).run([INPUT])
    np.testing.assert_array_equal(a, INPUT + 1)
    assert a.dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_lstm_weights_are_packed_in_every_precision(precision: str) -> None:
    """They are packed where that changes no bit; elsewhere, and in a precision that oneDNN cannot compute on
    this processor, the module serves as it is.
    """
    computable = {
        "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
    }
    variant = "packed" if precision not in computable or computable[precision]() else "plain"
    torch.manual_seed(1)
    module = Recurrent()
    runner = loaded(module, one_output(), precision=precision)
    assert isinstance(runner, TorchRunner)
    assert runner.variant == variant
    with torch.inference_mode():
        wanted = module(torch.from_numpy(INPUT)).numpy()
    np.testing.assert_allclose(runner.run([INPUT])[0], wanted, atol=1e-6 if "32" in precision else 0.02)


def test_a_model_without_lstm_serves_as_it_is() -> None:
    """Nothing else is tried on a CPU."""
    runner = loaded(Single(), one_output())
    assert isinstance(runner, TorchRunner)
    assert runner.variant == "plain"


class Insistent(nn.Module):
    """Multiplies what it is given with FP32 of its own making."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(2, 2, dtype=torch.float32)


def test_a_model_that_cannot_compute_in_the_precision_is_refused() -> None:
    """When it is loaded, by its name."""
    with pytest.raises(ModelUnusable, match=r"^m cannot compute in bf16 on cpu: .*Float"):
        loaded(Insistent(), one_output(), precision="bf16")


# -- refusals -----------------------------------------------------------------------------------


def weights() -> bytes:
    """What `torch.save` makes of a module's parameters: no TorchScript."""
    buffer = io.BytesIO()
    torch.save(Trained().state_dict(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [lambda: b"", lambda: b"garbage", lambda: bytes(100_000), lambda: archive(Single())[:-200], weights],
    ids=["empty", "garbage", "zeros", "cut", "weights only"],
)
def test_file_that_is_no_torchscript_is_refused(content: Callable[[], bytes]) -> None:
    """In one line that names the model."""
    with pytest.raises(ModelUnusable, match=r"^torch cannot load the file of m: .+$") as refused:
        load_runner("torchscript", content(), one_output(), DeviceSettings())
    assert "\n" not in str(refused.value)


def test_dict_without_an_output_is_refused_at_warm_up() -> None:
    """It names the missing one."""
    its = signature(inputs=(X,), outputs=(A, TensorSpec("c", DataType.FP32, ())))
    with Passage(loaded(ByName(), its)) as run, pytest.raises(ModelUnusable, match=r"m fails on 1 rows .*c"):
        run.instance.warm_up(0, (1,), rounds=1)


def test_type_that_no_client_could_read_is_refused_at_warm_up() -> None:
    """bfloat16 has no place in a manifest, nor in numpy."""
    with Passage(loaded(Half(), one_output())) as run, pytest.raises(ModelUnusable, match="BFloat16"):
        run.instance.warm_up(0, (1,), rounds=1)
