"""Which form of a model is kept. What a GPU measures is played by tables here."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scheduler.executor.runner import DeviceSettings
from scheduler.executor.torch_model import TorchModel, model_of
from scheduler.executor.variants import TRIED_ROWS, fastest, rearranged
from tests.scheduler.executor.passage import signature

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")


def model(name: str, compute: Callable[..., Any] = lambda x: x + 1) -> TorchModel:
    """x → y, by a function."""
    return model_of(compute, signature(), DeviceSettings(), name)


def choose(others: Sequence[TorchModel], times: dict[str, Sequence[float]], precision: str = "fp32") -> str:
    """The form that is kept where batches of `TRIED_ROWS` take these times; plain takes 1 each."""

    def seconds(tried: TorchModel, inputs: Sequence[Tensor]) -> float:
        return {"plain": (1.0,) * len(TRIED_ROWS), **times}[tried.variant][TRIED_ROWS.index(len(inputs[0]))]

    return fastest(model("plain"), others, precision, CPU, seconds).variant


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"frozen": (0.9, 0.9, 0.9), "optimized": (0.8, 0.8, 0.8)}, "optimized"),
        ({"frozen": (0.8, 0.8, 0.8), "optimized": (0.9, 0.9, 0.9)}, "frozen"),
        ({"frozen": (0.98, 0.98, 0.98), "optimized": (1.1, 1.1, 1.1)}, "plain"),
        # Over all sizes, whatever the size of the batch.
        ({"frozen": (0.8, 1.0, 1.1), "optimized": (1.0, 1.0, 1.0)}, "frozen"),
        ({"frozen": (0.8, 1.0, 1.3), "optimized": (1.0, 1.0, 1.0)}, "plain"),
    ],
)
def test_the_fastest_is_kept(times: dict[str, Sequence[float]], kept: str) -> None:
    """The plain one where the gain is within the noise."""
    assert choose([model("frozen"), model("optimized")], times) == kept


def fails_on(rows: int) -> Callable[[Tensor], Tensor]:
    """Raises for batches of this size."""

    def compute(x: Tensor) -> Tensor:
        if len(x) == rows:
            raise RuntimeError("not this size")
        return x + 1

    return compute


@pytest.mark.parametrize("rows", TRIED_ROWS)
def test_a_form_that_raises_is_dropped(rows: int) -> None:
    """On any size, however fast it is; the others are still tried."""
    others = [model("frozen", fails_on(rows)), model("optimized")]
    assert choose(others, {"frozen": (0.1,) * 3, "optimized": (0.9,) * 3}) == "optimized"


@pytest.mark.parametrize(
    ("error", "precision", "kept"),
    [
        (1e-6, "fp32", "frozen"),
        (1e-3, "fp32", "plain"),
        (1e-3, "bf16", "frozen"),
        (0.2, "bf16", "plain"),
        (float("nan"), "bf16", "plain"),
    ],
)
def test_a_form_that_answers_differently_is_dropped(error: float, precision: str, kept: str) -> None:
    """By more than the precision allows."""
    assert choose([model("frozen", lambda x: x + 1 + error)], {"frozen": (0.5,) * 3}, precision) == kept


def test_a_plain_model_that_raises_is_kept() -> None:
    """Warm-up, on its own terms, says what is wrong with it."""
    plain = model("plain", fails_on(TRIED_ROWS[1]))
    assert fastest(plain, [model("frozen")], "fp32", CPU, lambda *_: 1.0) is plain


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.conv(x)).relu()
        return answer


def test_forms_of_a_module_answer_alike() -> None:
    """A batch normalisation goes into the convolution before it; the module itself stays as it is."""
    plain = Normalised().eval()
    plain.norm.running_mean.add_(0.3)  # type: ignore[union-attr]
    module = torch.jit.script(plain)
    forms = dict(rearranged(module))
    assert list(forms) == ["frozen", "optimized"]
    x = torch.randn(3, 2, 5)
    with torch.inference_mode():
        for form in forms.values():
            assert "batch_norm" not in str(form.graph)
            torch.testing.assert_close(form(x), plain(x))
    assert "batch_norm" in str(module.inlined_graph)
