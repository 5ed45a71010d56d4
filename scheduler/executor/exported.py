"""Exported programs: `.pt2` files, as `torch.export.save` writes them."""

import io
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from scheduler.executor import rnn_weights
from scheduler.executor.error_text import last_line
from scheduler.executor.exported_archive import plain_data
from scheduler.executor.precision import narrow_dtype
from scheduler.executor.runner import DeviceSettings, ModelUnusable
from scheduler.executor.torch_model import (
    TorchModel,
    check_precision,
    model_of,
    open_device,
    tensor_dtype,
)
from scheduler.signature import DYNAMIC, ModelSignature, TensorSpec

# What a graph calls beside operators, to compute shapes and to take tuples apart.
_ON_NUMBERS = {
    *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
    *(operator.mod, operator.pow, operator.neg, operator.pos, operator.eq, operator.ne, operator.lt),
    *(operator.le, operator.gt, operator.ge, operator.and_, operator.or_, math.trunc, torch.sym_not),
    *(torch.sym_int, torch.sym_float, torch.sym_ite, torch.sym_max, torch.sym_min, torch.sym_sqrt),
}
# Those that call parts of the graph, and nothing else.
_ON_GRAPHS = ("cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
# Those that make a tensor of one value, which every precision can hold.
_FILLING = {torch.ops.aten.zeros.default, torch.ops.aten.ones.default, torch.ops.aten.full.default}
_TRAINING = ("train", "training")
# Of an input: as many as the batch has.
_ROWS = "rows"
# A size that is fixed, the number of rows, or the smallest and the largest of a dynamic dimension.
_Size = int | str | tuple[int, int]
# torch specialises on sizes of 0 and 1, notes it as a minimum of 2, and does not mean it.
_UNLIMITED_FROM = 2


def load(file: bytes, signature: ModelSignature, settings: DeviceSettings) -> TorchModel:
    """See `Load`. The program runs as it is, operator by operator; nothing is compiled.

    Raises:
        ModelUnusable: also where the batch size is fixed, the program changes its own state, or was exported
            in training mode.
    """
    device = open_device(settings)
    try:
        program = _read(file)
        _check_state(program)
        most_rows = _check_inputs(program, signature)
        module = _module(program, settings, device)
    except ModelUnusable as error:
        raise ModelUnusable(f"the file of {signature.name} cannot be served: {error}") from error
    except Exception as error:  # torch raises whatever its parts do
        raise ModelUnusable(f"torch cannot load the file of {signature.name}: {last_line(error)}") from error
    call = module.forward if most_rows is None else _Limited(module, most_rows)
    model = model_of(call, signature, settings, "plain")
    if narrow_dtype(settings.precision) is not None:
        check_precision(model, settings, device)
    return model


def _read(file: bytes) -> ExportedProgram:
    # Not torch.export.load: where this fails, that goes on to read an older form of archive.
    program = load_pt2(io.BytesIO(plain_data(file))).exported_programs["model"]
    for module in _graphs(program):
        for node in module.graph.nodes:
            _check_node(node)
    return program


def _graphs(program: ExportedProgram) -> list[fx.GraphModule]:
    """The program's graph, and those of its branches and loops."""
    return [module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]


def _check_node(node: fx.Node) -> None:
    """torch finds functions by dotted names, any function at all: only its operators may be called."""
    if not all(part.isidentifier() for part in (node.name, *_path(node))):
        raise ModelUnusable(f"{node.name[:100]!r} is no name")
    if node.op not in ("call_function", "placeholder", "get_attr", "output"):
        raise ModelUnusable(f"{node.name} is a {node.op}, allowed are calls of torch's operators")
    for function in (node.target, *pytree.tree_leaves((node.args, node.kwargs))):
        if callable(function) and not isinstance(function, torch.device) and not _is_operator(function):
            raise ModelUnusable(f"it calls {function}, allowed are torch's operators")
    if isinstance(node.target, torch._ops.OpOverload):
        names = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if any(given.get(name) is True for name in _TRAINING):
            raise ModelUnusable(f"{node.name} is in training mode: call eval() before the export")


def _path(node: fx.Node) -> list[str]:
    return str(node.target).split(".") if node.op in ("placeholder", "get_attr") else []


def _is_operator(function: Any) -> bool:
    if isinstance(function, torch._ops.HigherOrderOperator):
        return function.__name__ in _ON_GRAPHS
    return isinstance(function, torch._ops.OpOverload) or function in _ON_NUMBERS


def _check_state(program: ExportedProgram) -> None:
    """Rows must depend on themselves only, so nothing may be kept from one call to the next."""
    signature = program.graph_signature
    changed = {*signature.buffers_to_mutate.values()}
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
                writes = argument.alias_info is not None and argument.alias_info.is_write
                if writes and isinstance(value, fx.Node) and value.op == "placeholder":
                    changed.add(value.name)
    changed -= {*signature.user_inputs}  # an input is this batch's own
    if changed:
        raise ModelUnusable(f"it changes {', '.join(sorted(changed))} in every call")


def _check_inputs(program: ExportedProgram, signature: ModelSignature) -> int | None:
    """Compares them with the manifest; the most rows that a batch may have, None for any number."""
    by_name = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [by_name[name] for name in program.graph_signature.user_inputs]
    if len(inputs) != len(signature.inputs):
        raise ModelUnusable(f"it takes {len(inputs)} inputs, its manifest names {len(signature.inputs)}")
    # Sizes that the program leaves open, by their symbols; fixed ones among them stay what the manifest says.
    open_sizes: dict[Any, _Size] = {}
    for spec, value in zip(signature.inputs, inputs, strict=True):
        _check_input(spec, value, open_sizes)
    most_rows = None
    for symbol, size in open_sizes.items():
        allowed = program.range_constraints.get(symbol)
        if allowed is None:
            continue
        low, high = _bounds(size)
        if allowed.lower > max(_UNLIMITED_FROM, low) or (high is not None and allowed.upper < high):
            raise ModelUnusable(
                f"it was exported for sizes from {allowed.lower} to {allowed.upper}, not {size}"
            )
        if high is None and allowed.upper.is_Integer:  # and not infinity
            most_rows = min(int(allowed.upper), most_rows or int(allowed.upper))
    return most_rows


def _bounds(size: _Size) -> tuple[int, int | None]:
    """The smallest and the largest; None where what the program allows is found out."""
    if isinstance(size, tuple):
        return size
    return (1, None) if isinstance(size, str) else (size, size)


def _check_input(spec: TensorSpec, value: object, open_sizes: dict[Any, _Size]) -> None:
    if not isinstance(value, Tensor):
        raise ModelUnusable(f"{spec.name} was exported as {value}, needed is a tensor")
    said = f"{value.dtype} {list(value.shape)}"
    dtype = tensor_dtype(spec)
    bounds = zip(spec.shape, spec.smallest, spec.largest, strict=True)
    sizes: tuple[_Size, ...] = (
        _ROWS,
        *((low, high) if size == DYNAMIC else size for size, low, high in bounds),
    )
    if value.dim() and isinstance(value.shape[0], int):
        raise ModelUnusable(
            f"{spec.name} was exported as {said}, with a batch size of {value.shape[0]}; needed is any size: "
            f"dynamic_shapes=({{0: torch.export.Dim('batch')}},)"
        )
    if (
        value.dtype != dtype
        or value.dim() != len(sizes)
        or not all(_fits(own, size, open_sizes) for own, size in zip(value.shape, sizes, strict=True))
    ):
        raise ModelUnusable(f"{spec.name} was exported as {said}, its manifest says {dtype} {list(sizes)}")


def _fits(own: Any, size: _Size, open_sizes: dict[Any, _Size]) -> bool:
    """Whether a size of the program can be this one; a symbol stands for the same everywhere."""
    if isinstance(own, int):
        return own == size
    symbol = own.node.expr
    return bool(symbol.is_Symbol) and open_sizes.setdefault(symbol, size) == size


def _module(program: ExportedProgram, settings: DeviceSettings, device: torch.device) -> fx.GraphModule:
    narrow = narrow_dtype(settings.precision)
    if narrow is not None:
        _narrow(program, narrow)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    # Without its checks of shapes in every call: the inputs have been compared with the manifest.
    module = program.module(check_guards=False)
    if device.type == "cuda":
        with torch.cuda.device(device):
            for weights in rnn_weights.of_graph(module):
                weights.flatten()
    return module


def _narrow(program: ExportedProgram, narrow: torch.dtype) -> None:
    """Converts weights and constants, and what the graph fills itself, such as the first state of an LSTM.

    A TorchScript module asks its inputs for their dtype; in an exported program it stands in the graph.
    """
    for table in (program.state_dict, program.constants):
        for name, value in table.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                table[name] = _like(value, value.detach().to(narrow))
    for module in _graphs(program):
        for node in list(module.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)  # says that a cast made FP32 of something
            elif node.target in _FILLING and node.meta["val"].dtype == torch.float32:
                node.update_kwarg("dtype", narrow)
        module.recompile()


def _like(old: Tensor, new: Tensor) -> Tensor:
    return torch.nn.Parameter(new, requires_grad=False) if isinstance(old, torch.nn.Parameter) else new


class _Limited:
    """A program that was exported for batches up to a size: warm-up finds out where more are asked for."""

    def __init__(self, module: fx.GraphModule, most_rows: int) -> None:
        self._module = module
        self._most_rows = most_rows

    def __call__(self, *inputs: Tensor) -> Any:
        if len(inputs[0]) > self._most_rows:
            raise ValueError(f"exported for at most {self._most_rows} rows, got {len(inputs[0])}")
        return self._module.forward(*inputs)
