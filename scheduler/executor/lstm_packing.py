"""Packs the weights of LSTM layers once, at load, instead of in every call.

On a CPU torch computes an LSTM with oneDNN, layer by layer, and brings each layer's weights into oneDNN's
blocked layout anew in every call: about a sixth of the time of one window of the bundled model. oneDNN
also takes weights that are in that layout already. So each `aten::lstm` of a frozen TorchScript graph is
replaced by its layers with packed weights. The arithmetic, its order, and so every bit of the result stay
the same; `pack` compares, and returns None where that or anything else is not as expected, because it
leans on parts of torch that promise nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Inputs of aten::lstm(input, hx, params, has_biases, layers, dropout, train, bidirectional, batch_first).
_PARAMETERS, _HAS_BIASES, _LAYERS, _BIDIRECTIONAL = 2, 3, 4, 7
_PER_LAYER = 4  # input weight, hidden weight, and a bias of each
CHECKED_ROWS = (1, 3)


@torch.jit.script
def _layer_by_layer(
    x: Tensor, state: list[Tensor], packed: list[Tensor], hidden: int, layers: int, batch_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    steps = (x.transpose(0, 1) if batch_first else x).contiguous()
    last_hidden: list[Tensor] = []
    last_cell: list[Tensor] = []
    for layer in range(layers):
        at = 4 * layer
        steps, h, c, _ = torch.mkldnn_rnn_layer(
            steps,
            packed[at],
            packed[at + 1],
            packed[at + 2],
            packed[at + 3],
            state[0][layer],
            state[1][layer],
            False,
            [],
            2,
            hidden,
            1,
            True,
            False,
            False,
            False,
        )
        last_hidden.append(h)
        last_cell.append(c)
    output = steps.transpose(0, 1) if batch_first else steps
    return output, torch.stack(last_hidden), torch.stack(last_cell)


def pack(module: Any, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> Any | None:
    """A module that answers the same and has its LSTM weights packed.

    Args:
        module: a TorchScript module in eval mode, on the CPU.
        shapes: per-item shape and dtype of each input, for the comparison.

    Returns:
        None where there is no LSTM to pack, or packing cannot be trusted here.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        with torch.inference_mode():
            frozen = torch.jit.freeze(module)
            nodes = [node for node in frozen.graph.nodes() if _is_plain_lstm(node)]
            if not nodes:
                return None
            for node in nodes:
                _replace(frozen.graph, node)
            torch._C._jit_pass_lint(frozen.graph)
            return frozen if _same_answers(module, frozen, shapes) else None
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError):
        return None  # another torch: what is leaned on has changed; the module itself still serves


def _is_plain_lstm(node: Any) -> bool:
    if node.kind() != "aten::lstm":
        return False
    inputs = list(node.inputs())
    constant = all(
        inputs[at].node().kind() == "prim::Constant"
        for at in (_PARAMETERS, _HAS_BIASES, _LAYERS, _BIDIRECTIONAL)
    )
    return constant and inputs[_HAS_BIASES].toIValue() and not inputs[_BIDIRECTIONAL].toIValue()


def _replace(graph: Any, node: Any) -> None:
    inputs = list(node.inputs())
    weights = [weight.detach() for weight in inputs[_PARAMETERS].toIValue()]
    hidden = weights[1].shape[1]
    packed = []
    for at in range(0, len(weights), _PER_LAYER):
        layer = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            weights[at], weights[at + 1], hidden, False, True, False
        )
        packed += [*layer, weights[at + 2], weights[at + 3]]

    graph.setInsertPoint(node)
    constants = graph.create("prim::ListConstruct", [_constant(graph, node, w) for w in packed], 1)
    constants.insertBefore(node)
    constants.output().setType(torch._C.ListType.ofTensors())
    arguments = [
        inputs[0],
        inputs[1],
        constants.output(),
        graph.insertConstant(hidden),
        inputs[_LAYERS],
        inputs[-1],
    ]
    (answer,) = graph.insertGraph(_layer_by_layer.graph, arguments)
    unpacked = graph.create("prim::TupleUnpack", [answer], 3)
    unpacked.insertBefore(node)
    for old, new in zip(list(node.outputs()), list(unpacked.outputs()), strict=True):
        new.setType(torch._C.TensorType.get())
        old.replaceAllUsesWith(new)
    node.destroy()


def _constant(graph: Any, before: Any, tensor: Tensor) -> Any:
    # `insertConstant` refuses tensors in oneDNN's layout.
    node = graph.create("prim::Constant")
    node.t_("value", tensor)
    node.insertBefore(before)
    node.output().setType(torch._C.TensorType.get())
    return node.output()


def _same_answers(module: Any, packed: Any, shapes: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> bool:
    generator = torch.Generator().manual_seed(0)
    for rows in CHECKED_ROWS:
        inputs = [torch.randn(rows, *shape, generator=generator).to(dtype) for shape, dtype in shapes]
        wanted, got = _tensors(module(*inputs)), _tensors(packed(*inputs))
        if len(wanted) != len(got) or not all(map(torch.equal, wanted, got)):
            return False
    return True


def _tensors(answer: Any) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer]
    return list(answer.values() if isinstance(answer, dict) else answer)
