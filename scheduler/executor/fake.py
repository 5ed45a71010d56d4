"""A runner without a model: for tests of everything around it, and to measure what that costs."""

from collections.abc import Callable, Sequence

import numpy as np

from scheduler.executor.runner import Array
from scheduler.signature import ModelSignature


class FakeRunner:
    """Answers every output with the mean of each row of the first input, in the output's shape and dtype.

    `before_run(inputs)` runs first: it may record, block, or raise as a model would.
    """

    def __init__(
        self, signature: ModelSignature, before_run: Callable[[Sequence[Array]], None] | None = None
    ) -> None:
        self._signature = signature
        self._before_run = before_run

    @property
    def signature(self) -> ModelSignature:
        """See `Runner`."""
        return self._signature

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `Runner`."""
        if self._before_run is not None:
            self._before_run(inputs)
        rows = inputs[0].reshape(len(inputs[0]), -1).mean(axis=1)
        return [self._output(rows, spec.shape, spec.data_type.dtype) for spec in self._signature.outputs]

    @staticmethod
    def _output(rows: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        spread = rows.reshape(-1, *([1] * len(shape)))
        return np.ascontiguousarray(np.broadcast_to(spread, (len(rows), *shape)).astype(dtype))
