"""What a caller gets back from a prediction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one request went, as the server measured it.

    `queue_wait_ns` is admission to dispatch, `compute_ns` dispatch to outputs ready, `server_ns` arrival
    to answer. `batch_size` items shared the batch, which was padded to `batch_bucket`; both are 0 where
    `cache_hit` is true. A request of several rows reports its longest wait and its last batch.
    """

    queue_wait_ns: int
    compute_ns: int
    server_ns: int
    batch_size: int
    batch_bucket: int
    cache_hit: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request; `prediction["name"]` is short for `prediction.outputs["name"]`.

    `outputs` holds one read-only array per output, in the order asked for, batch dimension first:
    shape [n, *per-item shape] and the model's dtype.
    """

    request_id: str
    model_name: str
    model_version: str
    outputs: Mapping[str, npt.NDArray[np.generic]]
    timing: Timing

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        return self.outputs[name]
