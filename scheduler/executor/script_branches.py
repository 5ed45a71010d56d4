"""Whether what a TorchScript module does next depends on the values that it is given.

Then answers on some rows say nothing about others, and a converter that leaves out what has no result may
leave out that the model raises. Shapes do not count: those of a model are the same for every row.
"""

from collections.abc import Iterator
from typing import Any

import torch

from scheduler.executor.onnx_graph import NotConvertible

# Ask a tensor for something else than its values.
_OF_LAYOUT = {
    *("aten::dim", "aten::size", "aten::numel", "aten::len", "aten::is_floating_point", "aten::is_complex"),
    *("prim::dtype", "prim::device", "prim::layout", "prim::is_cuda", "prim::shape"),
}
# Give tensors whose shape depends on values.
_OF_VALUES_SHAPE = {
    *("aten::nonzero", "aten::nonzero_numpy", "aten::masked_select", "aten::index", "aten::argwhere"),
    *("aten::unique_consecutive", "aten::unique_dim", "aten::_unique2", "aten::repeat_interleave"),
}


def check(graph: Any) -> None:
    """Raises NotConvertible where a branch or a loop of the graph hangs on values of a tensor."""
    for node in _nodes(graph):
        if node.kind() in _OF_VALUES_SHAPE:
            raise NotConvertible(f"{node.kind()} makes a shape of values")
        if any(map(_hangs_on_values, _conditions(node))):
            raise NotConvertible("what it does depends on values")


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _conditions(node: Any) -> list[Any]:
    inputs = list(node.inputs())
    if node.kind() == "prim::If":
        return inputs[:1]
    if node.kind() == "prim::Loop":
        (body,) = node.blocks()
        return [*inputs[:2], next(body.outputs())]
    return []


def _hangs_on_values(value: Any) -> bool:
    if value.type().isSubtypeOf(torch._C.TensorType.get()):
        return True
    node = value.node()
    if node.kind() in _OF_LAYOUT:
        return False
    if node.kind() == "prim::Param":
        return True  # of a loop's body: what the round before has made
    results = [result for block in node.blocks() for result in block.outputs()]
    return any(map(_hangs_on_values, (*node.inputs(), *results)))
