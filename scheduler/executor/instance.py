"""An execution slot of a device: takes a batch from the slots through the model and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduler.dispatcher import Batch


class Instance(Protocol):
    """One execution slot with buffers of its own. Used by one thread."""

    def run(self, batch: Batch) -> None:
        """Runs a batch and hands its slots back, once, whatever the model does.

        Where the batch raises, only the rows that are to blame fail; see `bisection`.

        Raises:
            DeviceLost: nothing was handed back, and this process cannot compute any more.
        """
        ...

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """Runs every bucket and measures it.

        Returns:
            Bucket to nanoseconds from dispatch to outputs ready: the median of the later rounds.

        Raises:
            ModelUnusable: the model raises, or its outputs are not what its manifest says.
        """
        ...


@dataclass(frozen=True, slots=True)
class FailureExtent:
    """What became of a batch that raised. Its other rows have results.

    Attributes:
        guilty: rows that raised by themselves.
        undecided: rows that failed because the search for the guilty ones ended before it came to them.
        expired: rows whose deadline passed before they could be run again.
        runs: how many parts of the batch were run.
    """

    guilty: int
    undecided: int
    expired: int
    runs: int


# Told once about a batch that raised, before its slots go back: (batch, its first error, extent).
FailureReport = Callable[[Batch, Exception, FailureExtent], None]
