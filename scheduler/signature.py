"""What a model takes and gives, and where each tensor lies inside an item's row of a slab.

Front ends write rows and engines read them by the same layout, computed here from the manifest: the
tensors of one item one after another, each aligned to 64 bytes. Where one of them is dynamic, each has the
room of its largest shape, and a header before them says what shape they have; see `ShapeHeader`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

# Of a dimension whose size is the request's to choose, or the model's.
DYNAMIC = -1
# A cache line, and what vector loads and the arena's slab rows are aligned to.
ALIGNMENT_BYTES = 64
# Of a size in a header.
_SIZE = np.dtype("<i4")


class DataType(Enum):
    """Element types, little-endian; names and numbers equal `tickring.v1.DataType` without its prefix."""

    BOOL = (1, "?")
    UINT8 = (2, "u1")
    INT8 = (3, "i1")
    INT16 = (4, "<i2")
    INT32 = (5, "<i4")
    INT64 = (6, "<i8")
    FP16 = (7, "<f2")
    FP32 = (8, "<f4")
    FP64 = (9, "<f8")

    def __init__(self, proto_value: int, code: str) -> None:
        self.proto_value = proto_value
        self.dtype: np.dtype[Any] = np.dtype(code)
        self.itemsize = self.dtype.itemsize
        self.is_float = self.dtype.kind == "f"


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        shape: per item; () is a scalar. A dynamic dimension is `DYNAMIC`.
        max_shape: the largest, of as many dimensions; None where all are fixed.
        min_shape: the smallest, likewise; None where a dynamic dimension may be 0.
    """

    name: str
    data_type: DataType
    shape: tuple[int, ...]
    max_shape: tuple[int, ...] | None = None
    min_shape: tuple[int, ...] | None = None

    @cached_property
    def is_dynamic(self) -> bool:
        """Whether a dimension is."""
        return self.max_shape is not None

    @cached_property
    def largest(self) -> tuple[int, ...]:
        """The shape that takes the most room."""
        return self.shape if self.max_shape is None else self.max_shape

    @cached_property
    def smallest(self) -> tuple[int, ...]:
        """The shape that takes the least."""
        if self.min_shape is not None:
            return self.min_shape
        return tuple(0 if size == DYNAMIC else size for size in self.shape)

    @cached_property
    def allowed_sizes(self) -> tuple[str, ...]:
        """Each dimension for people: "50", or "1 to 512"."""
        bounds = zip(self.smallest, self.largest, strict=True)
        return tuple(str(low) if low == high else f"{low} to {high}" for low, high in bounds)

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of one item of the largest shape."""
        return self.bytes_of(self.largest)

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of one item of this shape."""
        return prod(shape) * self.data_type.itemsize

    def allows(self, shape: Sequence[int]) -> bool:
        """Whether an item may have this shape."""
        return len(shape) == len(self.shape) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )

    def of_shape(self, shape: tuple[int, ...]) -> "TensorSpec":
        """The same tensor where it has this shape, which is one that it may have."""
        return TensorSpec(self.name, self.data_type, shape)


@dataclass(frozen=True, eq=False)
class ModelSignature:
    """One version of a model as a caller sees it. The order of the tensors is the model's own.

    Compared by identity, so that a table keyed by it costs a pointer's hash and not that of every name.

    Attributes:
        finite_inputs: NaN and Inf in an input are refused.
        finite_outputs: NaN or Inf in an output is an error of that item.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    finite_inputs: bool = True
    finite_outputs: bool = True

    @cached_property
    def is_dynamic(self) -> bool:
        """Whether an input or output is."""
        return any(spec.is_dynamic for spec in (*self.inputs, *self.outputs))

    @cached_property
    def input_header(self) -> "ShapeHeader":
        """What stands before the inputs of an item."""
        return ShapeHeader(self.inputs)

    @cached_property
    def output_header(self) -> "ShapeHeader":
        """What stands before the outputs of an item."""
        return ShapeHeader(self.outputs)

    @cached_property
    def input_offsets(self) -> tuple[int, ...]:
        """Where each input starts in an item's input row, bytes."""
        return _offsets(self.inputs)

    @cached_property
    def output_offsets(self) -> tuple[int, ...]:
        """Where each output starts in an item's output row, bytes."""
        return _offsets(self.outputs)

    @cached_property
    def input_row_bytes(self) -> int:
        """Room for the inputs of one item."""
        return row_bytes(self.inputs)

    @cached_property
    def output_row_bytes(self) -> int:
        """Room for the outputs of one item."""
        return row_bytes(self.outputs)

    @cached_property
    def input_by_name(self) -> dict[str, tuple[TensorSpec, int]]:
        """Each input and its offset."""
        return {spec.name: (spec, at) for spec, at in zip(self.inputs, self.input_offsets, strict=True)}

    @cached_property
    def all_outputs(self) -> tuple[int, ...]:
        """The indexes of all outputs, in order."""
        return tuple(range(len(self.outputs)))


class ShapeHeader:
    """The sizes of an item's dynamic dimensions, in front of its row: int32, tensor by tensor.

    Attributes:
        size_bytes: of what is written; 0 where every shape is fixed. The first tensor starts at the next
            multiple of 64.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = specs
        self._dimensions = [
            (position, axis)
            for position, spec in enumerate(specs)
            for axis, size in enumerate(spec.shape)
            if size == DYNAMIC
        ]
        self.size_bytes = len(self._dimensions) * _SIZE.itemsize

    def encode(self, shapes: Sequence[tuple[int, ...]]) -> bytes:
        """The header of an item whose tensors have these shapes."""
        return np.array([shapes[at][axis] for at, axis in self._dimensions], _SIZE).tobytes()

    def decode(self, header: bytes) -> list[tuple[int, ...]]:
        """The shape of each tensor. Raises ValueError for a header that nobody can have written."""
        shapes = [list(spec.shape) for spec in self._specs]
        for (at, axis), size in zip(self._dimensions, np.frombuffer(header, _SIZE).tolist(), strict=True):
            shapes[at][axis] = size
        for spec, shape in zip(self._specs, shapes, strict=True):
            if not spec.allows(shape):
                allowed = ", ".join(spec.allowed_sizes)
                raise ValueError(f"a row says that {spec.name} is {shape}, allowed is [{allowed}]")
        return [tuple(shape) for shape in shapes]


def row_bytes(specs: Sequence[TensorSpec]) -> int:
    """Room for one item of each tensor, header and padding included."""
    return _header_bytes(specs) + sum(_aligned(spec.item_bytes) for spec in specs)


def _offsets(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    start = _header_bytes(specs)
    return tuple(start + at for at in accumulate((_aligned(s.item_bytes) for s in specs[:-1]), initial=0))


def _header_bytes(specs: Sequence[TensorSpec]) -> int:
    return _aligned(ShapeHeader(specs).size_bytes)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
