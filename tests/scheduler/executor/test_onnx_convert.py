"""Which modules are converted to ONNX, and that they answer as before."""

import numpy as np
import pytest
import torch
from torch import nn

from scheduler.executor.onnx_convert import convert
from scheduler.executor.onnx_graph import NotConvertible
from scheduler.executor.onnx_runner import OnnxRunner
from scheduler.executor.rehearsal import Rehearsal
from scheduler.executor.runner import DeviceSettings, load_runner
from scheduler.signature import DataType, ModelSignature
from server.repository import load_repository, read_verified
from server.settings import bundled_repository
from tests.scheduler.executor import onnx_models as models
from tests.scheduler.executor.onnx_models import archive, of_x

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.usefixtures("torch_threads"),
]


def both(file: bytes, its: ModelSignature) -> tuple[Rehearsal, OnnxRunner]:
    """The module, to compare with, and what it is converted to."""
    module = load_runner("torchscript", file, its, DeviceSettings())
    return Rehearsal(module), OnnxRunner(convert(file, its), its, 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(6, 8, batch_first=True),
        nn.LSTM(6, 8, num_layers=2, batch_first=True),
        nn.LSTM(6, 8, bidirectional=True, batch_first=True),
        nn.GRU(6, 8, num_layers=2, batch_first=True),
        nn.RNN(6, 8, batch_first=True),
    ],
    ids=["lstm", "two layers", "both directions", "gru", "rnn"],
)
def test_recurrent_models_answer_the_same(layer: nn.RNNBase) -> None:
    """NaN and infinity included, which ONNX Runtime alone turns into numbers."""
    rehearsal, form = both(archive(models.Recurrent(layer)), of_x())
    rehearsal.check(form, "fp32")
    for rows in (2, 16, 33):
        rehearsal.check_size(form, "fp32", rows)


@pytest.mark.parametrize(
    "module", [models.Dense(), nn.Sequential(nn.Flatten(), nn.Linear(35, 2), nn.Softmax(1))]
)
def test_other_models_answer_the_same(module: nn.Module) -> None:
    rehearsal, form = both(archive(module), of_x())
    rehearsal.check(form, "fp32")


def test_outputs_by_name_come_in_the_manifests_order() -> None:
    rehearsal, form = both(archive(models.ByName()), of_x("a", "b"))
    rehearsal.check(form, "fp32")


def test_the_bundled_model_answers_the_same() -> None:
    (manifest,) = load_repository(bundled_repository()).manifests
    rehearsal, form = both(read_verified(manifest.latest), manifest.signature(1))
    rehearsal.check(form, "fp32")
    rehearsal.check_size(form, "fp32", 32)


def test_a_row_with_nan_does_not_touch_the_others() -> None:
    file, its = archive(models.Recurrent(nn.LSTM(6, 8, batch_first=True))), of_x()
    form = OnnxRunner(convert(file, its), its, 1)
    rows = np.random.default_rng(0).standard_normal((6, models.FEATURES, models.STEPS)).astype(np.float32)
    before = form.run([rows])[0].copy()
    rows[2, 1, 3] = np.nan
    rows[4, 0, 0] = np.inf
    after = form.run([rows])[0]
    assert np.isnan(after[[2, 4]]).all()
    np.testing.assert_array_equal(after[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (models.Raises(), "what it does depends on values"),
        (models.Asserts(), "what it does depends on values"),
        (models.RaisesInALoop(), "what it does depends on values"),
        (models.RaisesOnCount(), "aten::nonzero makes a shape of values"),
        (models.Branches(), "what it does depends on values"),
        (models.BySize(), "it has a branch or a loop, If"),
        (models.Looks(), "the operator Cast is not one of those known to be safe"),
        (models.Sorted(), "the operator TopK is not one of those known to be safe"),
        (models.Divides(), "the operator Cast is not one of those known to be safe"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_could_answer_differently_is_not_converted(module: nn.Module, why: str) -> None:
    """The exporter takes most of these, and leaves out that they raise."""
    with pytest.raises(NotConvertible) as caught:
        convert(archive(module), of_x())
    assert str(caught.value).startswith(why)


@pytest.mark.parametrize("data_type", [DataType.INT64, DataType.FP16, DataType.FP64])
def test_only_fp32_is_converted(data_type: DataType) -> None:
    its = of_x(data_type=data_type)
    with pytest.raises(NotConvertible, match=f"x is {data_type.name}, converted are models of FP32"):
        convert(archive(models.Dense()), its)


def test_what_the_exporter_does_not_know_is_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """And by nobody else."""

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.special.bessel_j0(x)
            return y.sum(2)[:, :2]

    with pytest.raises(NotConvertible, match="bessel_j0") as caught:
        convert(archive(Odd()), of_x())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
