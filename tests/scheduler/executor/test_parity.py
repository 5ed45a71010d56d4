"""How close every precision comes to FP32 on the CPU, and that a wrong weight is further away than that."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from examples.sp500.features import load_history, make_windows
from examples.sp500.model import CnnLstm
from scheduler.executor.parity import TOLERANCES, errors, measure
from scheduler.executor.runner import Array, DeviceModel, DeviceSettings, load_model
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.repository import load_repository, read_verified
from server.settings import bundled_repository
from tests.scheduler.executor.passage import signature
from tests.scheduler.executor.programs import program

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

(MANIFEST,) = load_repository(bundled_repository()).manifests
SIGNATURE = MANIFEST.signature(MANIFEST.latest.version)
ROWS = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """What loading sets anyway; the tests compare models, not threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundled() -> bytes:
    """The file of the bundled model."""
    return read_verified(MANIFEST.latest)


@pytest.fixture(scope="module")
def reference(bundled: bytes) -> DeviceModel:
    """In FP32 on the CPU."""
    return load_model("torchscript", bundled, SIGNATURE, DeviceSettings())


@pytest.fixture(scope="module")
def files(bundled: bytes) -> dict[str, bytes]:
    """The bundled model in every format."""
    exported = program(shipped(bundled), torch.zeros(2, 50, 60))
    return {"torchscript": bundled, "exported_program": exported}


@pytest.fixture(scope="module")
def noise() -> Array:
    """Random windows: float32 `[64, 50, 60]`."""
    windows: Array = np.random.default_rng(4).standard_normal((ROWS, 50, 60), np.float32)
    return windows


@pytest.fixture(scope="module")
def days() -> Array:
    """Days of the S&P 500 from all of its history: float32 `[64, 50, 60]`."""
    every = make_windows(load_history()).windows
    return np.ascontiguousarray(every[np.linspace(0, len(every) - 1, ROWS).astype(int)])


def shipped(bundled: bytes) -> CnnLstm:
    """The bundled model as a module whose weights can be changed."""
    model = CnnLstm().eval()
    model.load_state_dict(torch.jit.load(io.BytesIO(bundled)).state_dict())  # type: ignore[no-untyped-call]
    return model


def saved(model: nn.Module) -> bytes:
    """Its TorchScript file."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("model_format", ["torchscript", "exported_program"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_precision_is_within_its_tolerance(
    files: dict[str, bytes],
    reference: DeviceModel,
    noise: Array,
    days: Array,
    model_format: str,
    precision: str,
) -> None:
    """In every output; and a narrow one is not FP32 by another name."""
    model = load_model(model_format, files[model_format], SIGNATURE, DeviceSettings(precision=precision))
    for error in [*measure(model, reference, [noise]), *measure(model, reference, [days])]:
        assert error.is_within(precision), error
        assert not error.is_within("fp32") or precision in ("fp32", "tf32"), error


def moved(weight: torch.Tensor) -> None:
    """One value of many is off by a tenth."""
    weight.view(-1)[0] += 0.1


def scaled(weight: torch.Tensor) -> None:
    """All are five percent too large."""
    weight *= 1.05


def reversed_rows(weight: torch.Tensor) -> None:
    """All are there, in the wrong place."""
    weight.copy_(weight.flip(0))


WEIGHTS = [name for name, _ in CnnLstm().named_parameters()]
MATRICES = [name for name in WEIGHTS if "weight" in name]
WRONG: list[tuple[str, str, Callable[[torch.Tensor], None]]] = [
    *(("fp32", name, moved) for name in WEIGHTS),
    *((precision, name, scaled) for precision in ("tf32", "fp16") for name in MATRICES),
    *(("bf16", name, reversed_rows) for name in MATRICES),
]


@pytest.mark.parametrize(("precision", "name", "spoil"), WRONG)
def test_a_wrong_weight_is_outside_the_tolerance(
    bundled: bytes,
    reference: DeviceModel,
    noise: Array,
    precision: str,
    name: str,
    spoil: Callable[[torch.Tensor], None],
) -> None:
    """The finer the precision, the smaller the mistake that shows."""
    model = shipped(bundled)
    with torch.no_grad():
        spoil(model.get_parameter(name))
    wrong = load_model("torchscript", saved(model), SIGNATURE, DeviceSettings(precision=precision))
    found = measure(wrong, reference, [noise])
    assert not all(error.is_within(precision) for error in found)


# -- the figures themselves ---------------------------------------------------------------------


def of_one(shape: tuple[int, ...] = (2,)) -> ModelSignature:
    """x → y."""
    spec = TensorSpec("y", DataType.FP32, shape)
    return signature(inputs=(spec,), outputs=(spec,))


def test_errors_are_relative_to_the_output() -> None:
    """To its largest value, and to its root mean square: an element near zero does not count for more."""
    wanted = np.array([[3.0, 1e-9], [-4.0, 0.0]], np.float32)
    got = np.array([[3.0, 0.2], [-4.0, 0.0]], np.float32)
    (error,) = errors(of_one(), [wanted], [got])
    assert error.name == "y"
    assert error.max_abs == pytest.approx(0.2)
    assert error.worst == pytest.approx(0.2 / 4)
    assert error.rms == pytest.approx(0.1 / 2.5)


def test_small_errors_everywhere_are_outside_too() -> None:
    """One large value must not excuse what happens to the small ones."""
    wanted = np.ones((100, 2), np.float32)
    wanted[0, 0] = 10
    (error,) = errors(of_one(), [wanted], [wanted * 1.05])
    assert error.worst < TOLERANCES["bf16"].worst
    assert not error.is_within("bf16")


def test_values_that_nearly_overflow_are_compared() -> None:
    """In FP64."""
    huge = np.full((1, 2), 3e38, np.float32)
    (error,) = errors(of_one(), [huge], [-huge])
    assert error.worst == pytest.approx(2)
    assert error.rms == pytest.approx(2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_an_answer_that_is_not_finite_is_outside(value: float, precision: str) -> None:
    """It compares with nothing."""
    wanted, got = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    got[1, 1] = value
    (error,) = errors(of_one(), [wanted], [got])
    assert not error.is_within(precision)


@pytest.mark.parametrize(("answer", "is_within"), [(0.0, True), (1e-30, False)])
def test_zeros_must_stay_zeros(answer: float, is_within: bool) -> None:
    """There is nothing to be relative to."""
    (error,) = errors(of_one(), [np.zeros((1, 2), np.float32)], [np.full((1, 2), answer, np.float32)])
    assert error.is_within("bf16") is is_within
