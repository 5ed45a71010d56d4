"""Which weights go to cuDNN in one buffer, and what it is told about them."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scheduler.executor import rnn_weights
from scheduler.executor.exported import _module, _read
from scheduler.executor.rnn_weights import RecurrentWeights
from scheduler.executor.runner import DeviceSettings
from tests.scheduler.executor.programs import program

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

LAYERS: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {"num_layers": 2, "batch_first": True}),
    "both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projected": (nn.LSTM, {"proj_size": 3}),
    "without biases": (nn.LSTM, {"bias": False, "num_layers": 3}),
    "gru": (nn.GRU, {"num_layers": 2}),
    "rnn": (nn.RNN, {}),
    "rnn with relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Wrapped(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.layer(x)[0]
        return steps


def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of cuDNN's own function, which lays weights out one behind the other in a new buffer."""
    calls: list[tuple[Any, ...]] = []

    def lay_out(weights: list[Tensor], *rest: Any) -> Tensor:
        calls.append((weights, *rest))
        buffer = torch.cat([weight.reshape(-1) for weight in weights])
        at = 0
        for weight in weights:
            weight.set_(buffer[at : at + weight.numel()].view_as(weight))  # type: ignore[call-overload]
            at += weight.numel()
        return buffer

    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lay_out)
    return calls


def expected(layer: nn.RNNBase) -> tuple[Any, ...]:
    """What nn.RNNBase.flatten_parameters would say, less the weights."""
    # The numbers of cuDNN's cudnnRNNMode_t, which a build without CUDA does not have.
    mode = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}[layer.mode]
    per_layer = (4 if layer.bias else 2) + (1 if layer.proj_size else 0)
    return (
        per_layer,
        layer.input_size,
        mode,
        layer.hidden_size,
        layer.proj_size,
        layer.num_layers,
        layer.batch_first,
        layer.bidirectional,
    )


def assert_in_one_buffer(weights: list[Tensor]) -> None:
    """Each begins where the one before it ends."""
    for before, after in itertools.pairwise(weights):
        assert after.data_ptr() == before.data_ptr() + before.numel() * before.element_size()


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_a_torchscript_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaded module computes with the buffer, frozen or not, and answers the same."""
    kind, options = LAYERS[name]
    layer = kind(5, 7, **options)
    calls = laid_out(monkeypatch)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Wrapped(layer).eval()), file)
    file.seek(0)
    module = torch.jit.load(file).eval()  # type: ignore[no-untyped-call]
    x = torch.randn(4, 6, 5)
    with torch.inference_mode():
        wanted = module(x)
    for weights in rnn_weights.of_script(module):
        weights.flatten()
    ((tensors, *told),) = calls
    if kind is nn.RNN:  # its function is no part of a loaded module, and of no matter here
        told[2] = expected(layer)[2]
    assert tuple(told) == expected(layer)
    assert_in_one_buffer(tensors)
    assert_in_one_buffer(list(module.parameters()))
    frozen = torch.jit.freeze(module)
    (operator,) = [n for n in frozen.graph.nodes() if n.kind() in ("aten::lstm", "aten::gru", *RNNS)]
    assert_in_one_buffer(list(operator.inputs())[2].toIValue())
    with torch.inference_mode():
        assert torch.equal(module(x), wanted)
        assert torch.equal(frozen(x), wanted)


RNNS = ("aten::rnn_tanh", "aten::rnn_relu")


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_an_exported_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, found by the operators of its graph."""
    kind, options = LAYERS[name]
    layer = kind(5, 7, **(options | {"batch_first": True}))
    calls = laid_out(monkeypatch)
    module = _module(
        _read(program(Wrapped(layer), torch.randn(3, 6, 5))), DeviceSettings(), torch.device("cpu")
    )
    x = torch.randn(4, 6, 5)
    with torch.inference_mode():
        wanted = module.forward(x)
    for weights in rnn_weights.of_graph(module):
        weights.flatten()
    ((tensors, *told),) = calls
    assert tuple(told) == expected(layer)
    assert_in_one_buffer(tensors)
    assert_in_one_buffer(list(module.parameters()))
    with torch.inference_mode():
        assert torch.equal(module.forward(x), wanted)


def test_shared_weights_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor cannot be in two places of a buffer; torch copies such weights in every call."""
    calls = laid_out(monkeypatch)
    weight = torch.randn(4, 4)
    RecurrentWeights([weight, weight], "RNN", 1, False, False).flatten()
    assert calls == []


def test_modules_without_recurrent_layers_have_none() -> None:
    """Nothing is looked for in vain."""
    module = torch.jit.script(nn.Sequential(nn.Linear(5, 3)))
    assert list(rnn_weights.of_script(module)) == []
    exported = _module(
        _read(program(nn.Sequential(nn.Linear(5, 3)), torch.randn(3, 5))),
        DeviceSettings(),
        torch.device("cpu"),
    )
    assert list(rnn_weights.of_graph(exported)) == []
