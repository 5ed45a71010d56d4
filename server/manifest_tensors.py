"""The inputs and outputs of a manifest: names, data types and shapes, fixed or dynamic."""

import re
from collections.abc import Callable, Mapping, Sequence
from operator import le
from typing import Any, NamedTuple, TypeGuard

from scheduler.signature import DYNAMIC, DataType, TensorSpec

NAME_ALLOWED = "must be letters, digits, _ . or -, the first no . or -"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# No row is so large; and of more digits nobody wants to read.
MAX_SIZE = 2**31 - 1
_KEYS = ("name", "data_type", "shape", "max_shape")
# An output has what shape the model gives it, down to nothing.
_INPUT_KEYS = (*_KEYS, "min_shape")


class Problems(NamedTuple):
    """Where a reader of a manifest tells what is wrong.

    Attributes:
        wrong: notes that the value of a key is none of what is allowed.
        check_keys: notes every key of a table, named by its prefix, that is none of these.
        checked: the value of the last part of a dotted name; None when it is not good, which is noted.
    """

    wrong: Callable[[str, object, str], None]
    check_keys: Callable[[str, Mapping[str, Any], tuple[str, ...]], None]
    checked: Callable[[Mapping[str, Any], str, Callable[[object], bool], str], Any]


def read_tensors(data: Mapping[str, Any], key: str, problems: Problems) -> tuple[TensorSpec, ...]:
    """The specs under `key`, "inputs" or "outputs"; without those that cannot be read, which is noted."""
    entries = data.get(key)
    if not isinstance(entries, list) or not entries:
        problems.wrong(key, entries, "must be at least one [[...]] table")
        return ()
    specs: list[TensorSpec] = []
    for index, entry in enumerate(entries):
        spec = _tensor(f"{key}[{index}]", entry, problems, is_input=key == "inputs")
        if spec is None:
            continue
        if spec.name in {other.name for other in specs}:
            problems.wrong(f"{key}[{index}].name", spec.name, "must differ from the others")
        specs.append(spec)
    return tuple(specs)


def check_origins(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    wrong: Callable[[str, object, str], None],
) -> None:
    """Notes dynamic outputs of a model without dynamic inputs.

    The size of an output must follow from those of the inputs: rows of one request may run in different
    batches, and where sizes come from values, their outputs would not fit together.
    """
    if any(spec.is_dynamic for spec in inputs):
        return
    for index, spec in enumerate(outputs):
        if spec.is_dynamic:
            wrong(f"outputs[{index}].shape", list(spec.shape), "must be fixed, as every input is")


def is_name(value: object) -> bool:
    """Whether a model, an input or an output may have it."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def tensor_to_json(spec: TensorSpec) -> list[Any]:
    """For a child process; see `tensor_from_json`."""
    bounds = [spec.max_shape, spec.min_shape] if spec.is_dynamic else []
    return [spec.name, spec.data_type.name, spec.shape, *bounds]


def tensor_from_json(entry: list[Any]) -> TensorSpec:
    """Back from `tensor_to_json`."""
    name, data_type, shape, *bounds = entry
    return TensorSpec(
        name, DataType[data_type], tuple(shape), *(None if own is None else tuple(own) for own in bounds)
    )


def _tensor(where: str, entry: object, problems: Problems, *, is_input: bool) -> TensorSpec | None:
    if not isinstance(entry, dict):
        problems.wrong(where, entry, "must be a table")
        return None
    problems.check_keys(f"{where}.", entry, _INPUT_KEYS if is_input else _KEYS)
    name = problems.checked(entry, f"{where}.name", is_name, NAME_ALLOWED)
    data_type = problems.checked(
        entry, f"{where}.data_type", _is_data_type, f"must be one of {', '.join(DataType.__members__)}"
    )
    shape = problems.checked(
        entry,
        f"{where}.shape",
        _is_shape,
        f"must be a list of sizes from 1 to {MAX_SIZE}, or {DYNAMIC} for a dynamic one, without the batch",
    )
    if shape is None:
        return None
    bounds = _bounds(where, entry, shape, problems, is_input=is_input)
    if name is None or data_type is None or bounds is None:
        return None
    return TensorSpec(name, DataType[data_type], tuple(shape), *bounds)


_Bounds = tuple[tuple[int, ...] | None, tuple[int, ...] | None]


def _bounds(
    where: str, entry: Mapping[str, Any], shape: list[int], problems: Problems, *, is_input: bool
) -> _Bounds | None:
    """The largest and the smallest shape, where there is a dynamic dimension; None when one is bad."""
    if DYNAMIC not in shape:
        stray = [key for key in ("max_shape", "min_shape") if key in entry]
        for key in stray:
            problems.wrong(f"{where}.{key}", entry[key], f"goes with a shape that has {DYNAMIC}")
        return None if stray else (None, None)
    largest = problems.checked(
        entry,
        f"{where}.max_shape",
        lambda value: _bounds_of(value, shape),
        f"must be the largest sizes, those that are not {DYNAMIC} as in shape = {shape}",
    )
    if largest is None:
        return None
    if not is_input:
        return tuple(largest), None
    if "min_shape" not in entry:
        return tuple(largest), tuple(1 if size == DYNAMIC else size for size in shape)
    smallest = problems.checked(
        entry,
        f"{where}.min_shape",
        lambda value: _bounds_of(value, shape) and all(map(le, value, largest)),
        f"must be the smallest sizes, none over those of max_shape = {largest}, the others as in shape",
    )
    return None if smallest is None else (tuple(largest), tuple(smallest))


def _is_data_type(value: object) -> bool:
    return isinstance(value, str) and value in DataType.__members__


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and (0 < size <= MAX_SIZE or size == DYNAMIC) for size in value
    )


def _bounds_of(value: object, shape: list[int]) -> TypeGuard[list[int]]:
    """Whether these are sizes for the dynamic dimensions, and the same as the fixed ones."""
    return (
        isinstance(value, list)
        and len(value) == len(shape)
        and all(type(size) is int and 0 < size <= MAX_SIZE for size in value)
        and all(own in (DYNAMIC, size) for own, size in zip(shape, value, strict=True))
    )
