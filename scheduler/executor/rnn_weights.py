"""Brings the weights of recurrent layers into the one buffer in which cuDNN wants them.

cuDNN takes the weights of all layers as one block of memory. Where they are not, torch copies them into one
in every call. `nn.LSTM` lays them out when it is moved to a GPU; a module that was loaded from a file has
them one by one. The tensors keep their identity and only move, so whoever holds them sees the new place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

# A layer's own name, or that of its operator: cuDNN's number of it, and the gates of a cell.
_CELLS = {
    "rnn_relu": (0, 1),
    "rnn_tanh": (1, 1),
    "RNN": (1, 1),  # with either function: they differ in nothing that moves weights
    "LSTM": (2, 4),
    "lstm": (2, 4),
    "GRU": (3, 3),
    "gru": (3, 3),
}


@dataclass(frozen=True, slots=True)
class RecurrentWeights:
    """Weights of all layers of an LSTM, GRU or RNN, in the order of nn.RNNBase: layer by layer, both ways."""

    tensors: Sequence[Tensor]
    cell: str
    layers: int
    bidirectional: bool
    batch_first: bool

    def flatten(self) -> None:
        """Moves the weights into one buffer; they must be on a GPU. Shared weights stay where they are."""
        if len({tensor.data_ptr() for tensor in self.tensors}) < len(self.tensors):
            return
        number, gates = _CELLS[self.cell]
        per_layer = len(self.tensors) // (self.layers * (2 if self.bidirectional else 1))
        from_input, from_state = self.tensors[:2]
        hidden = from_input.shape[0] // gates
        # An LSTM with a projection has its state in another size than its cells.
        projection = from_state.shape[1] if from_state.shape[1] != hidden else 0
        with torch.no_grad():
            torch._cudnn_rnn_flatten_weight(
                list(self.tensors),
                per_layer,
                from_input.shape[1],
                number,
                hidden,
                projection,
                self.layers,
                self.batch_first,
                self.bidirectional,
            )


def of_script(module: torch.jit.ScriptModule) -> Iterator[RecurrentWeights]:
    """Every recurrent layer of a TorchScript module that is not frozen."""
    for part in module.modules():
        cell = getattr(part, "original_name", "")
        if cell in _CELLS and hasattr(part, "_flat_weights"):
            layer: Any = part
            yield RecurrentWeights(
                layer._flat_weights, cell, layer.num_layers, layer.bidirectional, layer.batch_first
            )


def of_graph(module: fx.GraphModule) -> Iterator[RecurrentWeights]:
    """Every recurrent layer of an exported program, by its operator."""
    for node in module.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or node.target._overloadname != "input":
            continue
        cell = node.target._opname
        if node.target.namespace == "aten" and cell in _CELLS:
            _, _, weights, _, layers, _, _, bidirectional, batch_first = node.args
            tensors = [_attribute(module, weight.target) for weight in weights]
            yield RecurrentWeights(tensors, cell, layers, bidirectional, batch_first)


def _attribute(module: Any, path: str) -> Tensor:
    for name in path.split("."):
        module = getattr(module, name)
    tensor: Tensor = module
    return tensor
