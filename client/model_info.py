"""What the server says about its models."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output: `shape` is that of one item, without the batch dimension.

    Where a dimension is -1, a request chooses its size, or of an output the model. `max_shape` and
    `min_shape` are the largest and the smallest then, and empty where all is fixed; an output has no
    smallest.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    max_shape: tuple[int, ...] = ()
    min_shape: tuple[int, ...] = ()

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """The smallest and the largest size of each dimension."""
        largest = self.max_shape or self.shape
        smallest = self.min_shape or tuple(max(0, size) for size in self.shape)
        return tuple(zip(smallest, largest, strict=True))

    @property
    def allowed_sizes(self) -> tuple[str, ...]:
        """Each dimension for people: "50", or "1 to 512"."""
        return tuple(str(low) if low == high else f"{low} to {high}" for low, high in self.bounds)

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether an item may have this shape."""
        return len(shape) == len(self.shape) and all(
            low <= size <= high for size, (low, high) in zip(shape, self.bounds, strict=True)
        )


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version: `state` is "AVAILABLE", "LOADING" or "READY"; `sha256` its file's, in hexadecimal."""

    version: str
    state: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the server's repository; a request to it carries 1 to `max_rows` rows of every input."""

    name: str
    description: str
    format: str
    is_default: bool
    max_rows: int
    versions: tuple[VersionInfo, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
