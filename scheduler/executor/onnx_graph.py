"""What of a converted model is served: operators whose answers are known for every input, tried or not.

torch's and ONNX Runtime's operators agree where the numbers are ordinary. Elsewhere they differ: an index
that torch refuses is another row to ONNX Runtime, a division by a whole zero ends the process, and its
recurrent layers make an ordinary number of NaN. So what has been computed from the inputs may pass only
through the operators listed here, none of which makes whole numbers of it, and recurrent layers are guarded.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

# By what they do with what has been computed from the inputs. Any of their inputs may be that.
_ANYWHERE = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Concat", "Identity"),
    *("Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sin", "Cos"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Sigmoid", "HardSigmoid"),
    *("HardSwish", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"),
    *("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    *("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSumExp"),
}
# Only the first may: the others say where, or how much.
_FIRST_ONLY = {
    *("Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Expand", "Flatten", "Split", "Pad"),
    *("Tile", "Clip"),
}
_OF_SHAPE = {"Shape", "Size"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_STEPS_AND_FEATURES = (0, 2)  # of [steps, rows, features]
_AXES, _ZERO = "guard_axes", "guard_zero"


class NotConvertible(Exception):
    """A model that is not served from ONNX; its text says why, as the end of a sentence about the model."""


def inspected(file: bytes) -> bytes:
    """The model, guarded. Raises NotConvertible where an operator is not one of those listed."""
    model = onnx.load_model_from_string(file)
    _check(model.graph)
    _guard(model.graph)
    return bytes(model.SerializeToString())


def _check(graph: onnx.GraphProto) -> None:
    computed = {value.name for value in graph.input}
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise NotConvertible(f"it has a branch or a loop, {node.op_type}")
        touched = [at for at, name in enumerate(node.input) if name in computed]
        if not touched or node.op_type in _OF_SHAPE:
            continue
        if node.op_type in _FIRST_ONLY and touched != [0]:
            raise NotConvertible(f"{node.op_type} goes by what has been computed")
        if node.op_type not in _FIRST_ONLY | _ANYWHERE:
            raise NotConvertible(f"the operator {node.op_type} is not one of those known to be safe")
        computed.update(node.output)


def _guard(graph: onnx.GraphProto) -> None:
    """Lets NaN through the recurrent layers: adds 0 times the sum of a row to what comes of it."""
    nodes = []
    for at, node in enumerate(graph.node):
        if node.op_type not in _RECURRENT:
            nodes.append(node)
            continue
        total, zero = f"guard_{at}_sum", f"guard_{at}"
        nodes.append(helper.make_node("ReduceSum", [node.input[0], _AXES], [total], keepdims=1))
        nodes.append(helper.make_node("Mul", [total, _ZERO], [zero]))
        wanted = list(node.output)
        del node.output[:]
        node.output.extend(f"{name}_unguarded" if name else "" for name in wanted)
        nodes.append(node)
        nodes += [helper.make_node("Add", [f"{name}_unguarded", zero], [name]) for name in wanted if name]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.array(_STEPS_AND_FEATURES, np.int64), _AXES))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), _ZERO))
