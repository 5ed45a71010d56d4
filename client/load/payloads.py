"""Requests to send: rows of a file in order, or numbers drawn from a seed where no file is given."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from client.codec import write_request
from client.model_info import ModelInfo, TensorInfo
from tickring.v1 import inference_pb2

Inputs = Mapping[str, npt.NDArray[np.generic]]

# Requests are sent in turn; more of them would only take memory.
MAX_REQUESTS = 256
MAX_BYTES = 4 * 1024 * 1024
# Of what is drawn: twice a batch of the bundled model.
DRAWN_ROWS = 64


def drawn(model: ModelInfo, seed: int) -> Inputs:
    """Standard normal numbers, or small whole ones; a size that requests choose is the smallest allowed."""
    rng = np.random.default_rng(seed)
    return {spec.name: _drawn(rng, spec) for spec in model.inputs}


def requests(
    inputs: Inputs,
    rows: int,
    *,
    model: str = "",
    version: str = "",
    outputs: Sequence[str] = (),
    bypass_batching: bool = False,
) -> list[bytes]:
    """PredictRequests of so many rows each, which go through `inputs` from the first row on and around.

    Raises:
        InvalidRequest: they cannot be put on the wire.
    """
    available = min(len(array) for array in inputs.values())
    row_bytes = sum(array[0].nbytes for array in inputs.values())
    count = min(MAX_REQUESTS, max(1, MAX_BYTES // max(1, rows * row_bytes)), max(1, available))
    made = []
    for number in range(count):
        message = inference_pb2.PredictRequest()
        chosen = (np.arange(rows) + number * rows) % available
        write_request(
            message,
            {name: array[chosen] for name, array in inputs.items()},
            model=model,
            version=version,
            priority=None,
            outputs=outputs,
            request_id="",
            routing_key="",
        )
        message.options.bypass_batching = bypass_batching
        made.append(message.SerializeToString())
    return made


def _drawn(rng: np.random.Generator, spec: TensorInfo) -> npt.NDArray[np.generic]:
    shape = (DRAWN_ROWS, *(max(1, low) for low, _ in spec.bounds))
    if spec.dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if np.issubdtype(spec.dtype, np.integer):
        return rng.integers(0, 100, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
