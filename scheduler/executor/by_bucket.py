"""One model in several forms, each for the batch sizes at which it is the fastest."""

from collections.abc import Mapping, Sequence

from scheduler.executor.runner import Array, Runner
from scheduler.signature import ModelSignature


class ByBucket:
    """Hands each batch to the runner for its size."""

    def __init__(self, by_bucket: Mapping[int, Runner], otherwise: Runner, variant: str) -> None:
        """`otherwise`: for sizes that are not there. `variant`: for the log."""
        self._by_bucket = by_bucket
        self._otherwise = otherwise
        self.variant = variant

    @property
    def signature(self) -> ModelSignature:
        """See `Runner`."""
        return self._otherwise.signature

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `Runner`. What is returned is good until this thread's next call."""
        return self._by_bucket.get(len(inputs[0]), self._otherwise).run(inputs)
