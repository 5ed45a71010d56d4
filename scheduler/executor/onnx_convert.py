"""From a TorchScript file to ONNX, for models where nothing is lost on the way.

torch's exporter turns operators into others that mostly mean the same. Where it cannot, it says so; but what
has no result it leaves out in silence, and an exception is that. So `script_branches` looks at the module
before, and `onnx_graph` at what has become of it.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from scheduler.executor import script_branches
from scheduler.executor.error_text import first_line
from scheduler.executor.onnx_graph import NotConvertible, inspected
from scheduler.signature import DataType, ModelSignature

# The newest set of operators that torch 2.11 and 2.13 both write from TorchScript without a warning.
OPSET = 17
# Not 1, which torch treats specially in places.
_ROWS = 2


def convert(file: bytes, signature: ModelSignature) -> bytes:
    """The model as ONNX, for any number of rows. Its inputs and outputs are in the manifest's order.

    Args:
        signature: of fixed shapes.

    Raises:
        NotConvertible: why not.
    """
    for spec in (*signature.inputs, *signature.outputs):
        if spec.data_type is not DataType.FP32:
            # Of whole numbers an answer may be asked for that only torch refuses, such as the last row of
            # a table by the index -1.
            raise NotConvertible(f"{spec.name} is {spec.data_type.name}, converted are models of FP32")
    try:
        module = torch.jit.load(io.BytesIO(file), map_location="cpu")  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(module.eval())
        script_branches.check(frozen.graph)
        _answer_in_order(frozen.graph, [spec.name for spec in signature.outputs])
        return inspected(_export(frozen, signature))
    except NotConvertible:
        raise
    except Exception as error:  # torch raises whatever its parts do
        raise NotConvertible(first_line(error)) from error


def _export(module: Any, signature: ModelSignature) -> bytes:
    ones = tuple(torch.ones((_ROWS, *spec.shape)) for spec in signature.inputs)
    inputs, outputs = _names("input", signature.inputs), _names("output", signature.outputs)
    written = io.BytesIO()
    with _in_silence():
        torch.onnx.export(
            module,
            ones,
            written,  # type: ignore[arg-type]  # a buffer will do where dynamo is false
            dynamo=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "rows"} for name in (*inputs, *outputs)},
            opset_version=OPSET,
        )
    return written.getvalue()


@contextmanager
def _in_silence() -> Iterator[None]:
    """Without warnings, and without the whole graph on standard output where something fails.

    torch 2.13 has a switch for the latter, and turns it on itself.
    """
    says = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = _say_nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = says


def _say_nothing(*_words: object) -> None:
    pass


def _names(kind: str, specs: Sequence[object]) -> list[str]:
    # Not the manifest's, which may be those of values in between.
    return [f"{kind}_{at}" for at in range(len(specs))]


def _answer_in_order(graph: Any, names: Sequence[str]) -> None:
    """Makes a tuple of what is returned as a dict, which ONNX knows nothing of."""
    (answer,) = graph.return_node().inputs()
    made = answer.node()
    if made.kind() != "prim::DictConstruct":
        return
    inputs = list(made.inputs())
    by_name = {key.toIValue(): value for key, value in zip(inputs[::2], inputs[1::2], strict=True)}
    values = [by_name[name] for name in names]
    ordered = graph.create("prim::TupleConstruct", values, 1)
    ordered.insertAfter(made)
    ordered.output().setType(torch._C.TupleType([value.type() for value in values]))
    graph.eraseOutput(0)
    graph.registerOutput(ordered.output())
