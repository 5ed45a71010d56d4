"""What the server says about its models."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output: `shape` is that of one item, without the batch dimension."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


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
