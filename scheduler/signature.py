"""What a model takes and gives, and where each tensor lies inside an item's row of a slab.

Front ends write rows and engines read them by the same layout, computed here from the manifest: the
tensors of one item one after another, each aligned to 64 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

# A cache line, and what vector loads and the arena's slab rows are aligned to.
ALIGNMENT_BYTES = 64


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
    """Name, element type and shape of one input or output. `shape` is per item; () is a scalar."""

    name: str
    data_type: DataType
    shape: tuple[int, ...]

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return prod(self.shape) * self.data_type.itemsize


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


def row_bytes(specs: Sequence[TensorSpec]) -> int:
    """Room for one item of each tensor, padding included."""
    return sum(_aligned(spec.item_bytes) for spec in specs)


def _offsets(specs: Sequence[TensorSpec]) -> tuple[int, ...]:
    return tuple(row_bytes(specs[:position]) for position in range(len(specs)))


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
