"""An execution slot of a device: takes a batch from the slots through the model and back."""

from collections.abc import Callable, Sequence
from typing import Protocol

from scheduler.dispatcher import Batch


class Instance(Protocol):
    """One execution slot with buffers of its own. Used by one thread."""

    def run(self, batch: Batch) -> None:
        """Runs a batch and hands its slots back, whatever happens. Never raises for a model's fault."""
        ...

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """Runs every bucket and measures it.

        Returns:
            Bucket to nanoseconds from dispatch to outputs ready: the median of the later rounds.

        Raises:
            ModelUnusable: the model raises, or its outputs are not what its manifest says.
        """
        ...


# Told about a batch that raised: (batch, error).
FailureReport = Callable[[Batch, Exception], None]
