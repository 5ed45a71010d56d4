"""Dynamic shapes in a manifest: what is read, and what is said about those that make no sense."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.signature import DataType, TensorSpec
from server.manifest_tensors import (
    Problems,
    check_origins,
    read_tensors,
    tensor_from_json,
    tensor_to_json,
)

SEQUENCE = TensorSpec("x", DataType.FP32, (-1, 50), (512, 50), (1, 50))


class Reader:
    """Collects problems as the reader of a manifest does."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def wrong(self, key: str, value: object, allowed: str) -> None:
        self.lines.append(f"{key} = {value}: {allowed}")

    def read(self, key: str = "inputs", **entry: object) -> tuple[TensorSpec, ...]:
        """A list of one tensor, `x` of FP32."""
        data = {key: [{"name": "x", "data_type": "FP32", **entry}]}
        return read_tensors(data, key, Problems(self.wrong, self._check_keys, self._checked))

    def _check_keys(self, prefix: str, table: Any, allowed: tuple[str, ...]) -> None:
        self.lines += [f"{prefix}{key} is no key" for key in table if key not in allowed]

    def _checked(self, table: Any, where: str, is_good: Any, allowed: str) -> Any:
        value = table.get(where.rpartition(".")[2])
        if is_good(value):
            return value
        self.wrong(where, value, allowed)
        return None


@pytest.mark.parametrize(
    ("key", "entry", "wanted"),
    [
        ("inputs", {"shape": [-1, 50], "max_shape": [512, 50]}, SEQUENCE),
        (
            "inputs",
            {"shape": [-1, 2, -1], "max_shape": [9, 2, 8], "min_shape": [3, 2, 8]},
            TensorSpec("x", DataType.FP32, (-1, 2, -1), (9, 2, 8), (3, 2, 8)),
        ),
        ("outputs", {"shape": [-1], "max_shape": [9]}, TensorSpec("x", DataType.FP32, (-1,), (9,))),
        ("outputs", {"shape": [3]}, TensorSpec("x", DataType.FP32, (3,))),
    ],
)
def test_shapes_with_bounds(key: str, entry: dict[str, object], wanted: TensorSpec) -> None:
    """The smallest size of an input is 1 unless said otherwise, that of an output 0."""
    reader = Reader()
    assert reader.read(key, **entry) == (wanted,)
    assert not reader.lines


AS_MAX = "must be the largest sizes, those that are not -1 as in shape = [-1, 50]"
AS_MIN = "must be the smallest sizes, none over those of max_shape = [512, 50], the others as in shape"
STRAY = "goes with a shape that has -1"


@pytest.mark.parametrize(
    ("key", "entry", "line"),
    [
        ("inputs", {"shape": [-1, 50]}, f"inputs[0].max_shape = None: {AS_MAX}"),
        ("outputs", {"shape": [-1, 50]}, f"outputs[0].max_shape = None: {AS_MAX}"),
        ("inputs", {"shape": [-1, 50], "max_shape": [512]}, f"inputs[0].max_shape = [512]: {AS_MAX}"),
        ("inputs", {"shape": [-1, 50], "max_shape": [512, 49]}, f"inputs[0].max_shape = [512, 49]: {AS_MAX}"),
        ("inputs", {"shape": [-1, 50], "max_shape": [0, 50]}, f"inputs[0].max_shape = [0, 50]: {AS_MAX}"),
        ("inputs", {"shape": [-1, 50], "max_shape": [-1, 50]}, f"inputs[0].max_shape = [-1, 50]: {AS_MAX}"),
        ("inputs", {"shape": [-1, 50], "max_shape": 512}, f"inputs[0].max_shape = 512: {AS_MAX}"),
        (
            "inputs",
            {"shape": [-1, 50], "max_shape": [True, 50]},
            f"inputs[0].max_shape = [True, 50]: {AS_MAX}",
        ),
        (
            "inputs",
            {"shape": [-1, 50], "max_shape": [512, 50], "min_shape": [513, 50]},
            f"inputs[0].min_shape = [513, 50]: {AS_MIN}",
        ),
        (
            "inputs",
            {"shape": [-1, 50], "max_shape": [512, 50], "min_shape": [0, 50]},
            f"inputs[0].min_shape = [0, 50]: {AS_MIN}",
        ),
        (
            "inputs",
            {"shape": [-1, 50], "max_shape": [512, 50], "min_shape": [2, 2]},
            f"inputs[0].min_shape = [2, 2]: {AS_MIN}",
        ),
        ("inputs", {"shape": [9, 50], "max_shape": [9, 50]}, f"inputs[0].max_shape = [9, 50]: {STRAY}"),
        ("inputs", {"shape": [9, 50], "min_shape": [9, 50]}, f"inputs[0].min_shape = [9, 50]: {STRAY}"),
        (
            "outputs",
            {"shape": [-1, 50], "max_shape": [512, 50], "min_shape": [1, 50]},
            "outputs[0].min_shape is no key",
        ),
    ],
)
def test_bounds_that_make_no_sense_are_one_line(key: str, entry: dict[str, object], line: str) -> None:
    """With the value and what is allowed."""
    reader = Reader()
    reader.read(key, **entry)
    assert reader.lines == [line]


def test_an_output_is_dynamic_only_where_an_input_is() -> None:
    """Its size must follow from those of the inputs."""
    lines: list[str] = []
    fixed = TensorSpec("k", DataType.INT64, ())
    output = TensorSpec("y", DataType.FP32, (-1,), (9,))

    def wrong(key: str, value: object, allowed: str) -> None:
        lines.append(f"{key} = {value}: {allowed}")

    check_origins([fixed, SEQUENCE], [output], wrong)
    check_origins([fixed], [fixed], wrong)
    assert not lines
    check_origins([fixed], [fixed, output], wrong)
    assert lines == ["outputs[1].shape = [-1]: must be fixed, as every input is"]


SIZES = st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans())


@given(dimensions=st.lists(SIZES, max_size=4), data_type=st.sampled_from(DataType), is_input=st.booleans())
def test_what_is_read_reaches_a_child(
    dimensions: list[tuple[int, int, bool]], data_type: DataType, is_input: bool
) -> None:
    """Any bounds; and every shape between them is allowed, none beside."""
    smallest = [low for low, _, _ in dimensions]
    largest = [low + more for low, more, _ in dimensions]
    shape = [-1 if is_dynamic else low for low, _, is_dynamic in dimensions]
    largest = [high if own == -1 else own for own, high in zip(shape, largest, strict=True)]
    entry: dict[str, object] = {"data_type": data_type.name, "shape": shape}
    if -1 in shape:
        entry["max_shape"] = largest
        if is_input:
            entry["min_shape"] = smallest
    reader = Reader()
    (spec,) = reader.read("inputs" if is_input else "outputs", **entry)
    assert not reader.lines
    assert tensor_from_json(tensor_to_json(spec)) == spec
    assert spec.is_dynamic == (-1 in shape)
    assert spec.allows(largest)
    assert spec.allows(smallest)
    for axis in range(len(shape)):
        assert not spec.allows([high + (at == axis) for at, high in enumerate(largest)])
    assert not spec.allows([*largest, 1])
    if spec.is_dynamic:
        assert not spec.allows(shape)
