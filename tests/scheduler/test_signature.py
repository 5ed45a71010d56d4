"""Where the tensors of an item lie in its row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.signature import ALIGNMENT_BYTES, DataType, ModelSignature, TensorSpec, row_bytes
from tickring.v1 import types_pb2

SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
SPECS = st.lists(
    st.builds(TensorSpec, name=st.just("t"), data_type=st.sampled_from(DataType), shape=SHAPES),
    min_size=1,
    max_size=6,
).map(tuple)
SIGNATURE = ModelSignature(
    name="m",
    version=1,
    inputs=(TensorSpec("a", DataType.FP32, (50, 60)), TensorSpec("b", DataType.INT64, ())),
    outputs=(TensorSpec("c", DataType.BOOL, (65,)), TensorSpec("d", DataType.FP16, (3,))),
)


@given(specs=SPECS)
def test_tensors_follow_each_other_without_meeting(specs: tuple[TensorSpec, ...]) -> None:
    """Each on a cache line of its own, in order, with less than a line between, and all inside the row."""
    signature = ModelSignature("m", 1, specs, specs[::-1])
    for its, offsets, row in (
        (signature.inputs, signature.input_offsets, signature.input_row_bytes),
        (signature.outputs, signature.output_offsets, signature.output_row_bytes),
    ):
        end = 0
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
