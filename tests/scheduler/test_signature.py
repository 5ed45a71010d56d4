"""Where the tensors of an item lie in its row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.signature import (
    ALIGNMENT_BYTES,
    DataType,
    ModelSignature,
    ShapeHeader,
    TensorSpec,
    row_bytes,
)
from tickring.v1 import types_pb2

SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)


@st.composite
def dynamic_specs(draw: st.DrawFn) -> TensorSpec:
    """Some dimensions may have any size from a smallest to a largest."""
    dimensions = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=3))
    shape = tuple(-1 if is_open else low for low, _, is_open in dimensions)
    if -1 not in shape:
        return TensorSpec("t", draw(st.sampled_from(DataType)), shape)
    largest = tuple(low + more if is_open else low for low, more, is_open in dimensions)
    smallest = tuple(low for low, _, _ in dimensions)
    return TensorSpec("t", draw(st.sampled_from(DataType)), shape, largest, smallest)


FIXED = st.builds(TensorSpec, name=st.just("t"), data_type=st.sampled_from(DataType), shape=SHAPES)
SPECS = st.lists(FIXED, min_size=1, max_size=6).map(tuple)
ANY_SPECS = st.lists(FIXED | dynamic_specs(), min_size=1, max_size=6).map(tuple)
SIGNATURE = ModelSignature(
    name="m",
    version=1,
    inputs=(TensorSpec("a", DataType.FP32, (50, 60)), TensorSpec("b", DataType.INT64, ())),
    outputs=(TensorSpec("c", DataType.BOOL, (65,)), TensorSpec("d", DataType.FP16, (3,))),
)


@given(specs=ANY_SPECS)
def test_tensors_follow_each_other_without_meeting(specs: tuple[TensorSpec, ...]) -> None:
    """Each on a cache line of its own, in order, with less than a line between, and all inside the row.

    The header is before the first, and takes nothing where nothing is dynamic.
    """
    signature = ModelSignature("m", 1, specs, specs[::-1])
    for its, offsets, row, header in (
        (signature.inputs, signature.input_offsets, signature.input_row_bytes, signature.input_header),
        (signature.outputs, signature.output_offsets, signature.output_row_bytes, signature.output_header),
    ):
        end = header.size_bytes
        assert end == 4 * sum(spec.shape.count(-1) for spec in its)
        for spec, offset in zip(its, offsets, strict=True):
            assert offset % ALIGNMENT_BYTES == 0
            assert 0 <= offset - end < ALIGNMENT_BYTES
            end = offset + spec.item_bytes
        assert 0 <= row - end < ALIGNMENT_BYTES
        assert row == row_bytes(its)


@given(spec=st.builds(TensorSpec, name=st.just("t"), data_type=st.sampled_from(DataType), shape=SHAPES))
def test_bytes_of_an_item_are_numpys(spec: TensorSpec) -> None:
    """Also of a scalar."""
    assert spec.item_bytes == np.zeros(spec.shape, spec.data_type.dtype).nbytes


@given(specs=ANY_SPECS, data=st.data())
def test_a_header_brings_every_shape_back(specs: tuple[TensorSpec, ...], data: st.DataObject) -> None:
    """Any that the manifest allows."""
    shapes = [
        tuple(
            data.draw(st.integers(low, high)) for low, high in zip(spec.smallest, spec.largest, strict=True)
        )
        for spec in specs
    ]
    header = ShapeHeader(specs)
    encoded = header.encode(shapes)
    assert len(encoded) == header.size_bytes
    assert header.decode(encoded) == shapes
    for spec, shape in zip(specs, shapes, strict=True):
        assert spec.allows(shape)
        assert spec.bytes_of(shape) <= spec.item_bytes
        assert spec.of_shape(shape).item_bytes == np.zeros(shape, spec.data_type.dtype).nbytes


@pytest.mark.parametrize("size", [-1, 0, 2, 10, 2**31 - 1])
def test_a_header_that_nobody_wrote_is_refused(size: int) -> None:
    """What lies in shared memory is not believed."""
    header = ShapeHeader([TensorSpec("t", DataType.INT8, (-1, 2), (9, 2), (3, 2))])
    message = rf"a row says that t is \[{size}, 2\], allowed is \[3 to 9, 2\]"
    with pytest.raises(ValueError, match=message):
        header.decode(np.array([size], "<i4").tobytes())


def test_sizes_for_people() -> None:
    assert TensorSpec("t", DataType.INT8, (-1, 2), (9, 2), (3, 2)).allowed_sizes == ("3 to 9", "2")
    assert TensorSpec("t", DataType.INT8, (-1, 2), (9, 2)).allowed_sizes == ("0 to 9", "2")
    assert TensorSpec("t", DataType.INT8, ()).allowed_sizes == ()


def test_a_model_that_is_written_out() -> None:
    """By hand: 12000 bytes take 188 lines, 65 bytes take two."""
    assert (SIGNATURE.input_offsets, SIGNATURE.input_row_bytes) == ((0, 12032), 12096)
    assert (SIGNATURE.output_offsets, SIGNATURE.output_row_bytes) == ((0, 128), 192)
    assert SIGNATURE.all_outputs == (0, 1)
    assert SIGNATURE.input_by_name == {
        "a": (SIGNATURE.inputs[0], 0),
        "b": (SIGNATURE.inputs[1], 12032),
    }


@pytest.mark.parametrize("data_type", DataType)
def test_types_are_those_of_the_wire(data_type: DataType) -> None:
    """Number, size and little-endian order; floats are those that can be NaN."""
    assert types_pb2.DataType.Name(data_type.proto_value) == f"DATA_TYPE_{data_type.name}"
    assert data_type.itemsize == data_type.dtype.itemsize
    assert data_type.dtype.newbyteorder("<") == data_type.dtype
    assert data_type.is_float == data_type.name.startswith("FP")
    bits = 8 if data_type is DataType.BOOL else int("".join(filter(str.isdigit, data_type.name)))
    assert data_type.itemsize * 8 == bits


def test_no_type_of_the_wire_is_missing() -> None:
    """Nor is one added that clients do not know."""
    assert {data_type.proto_value for data_type in DataType} == set(types_pb2.DataType.values()) - {0}
