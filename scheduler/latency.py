"""How long a batch of a given size takes.

The policy asks, the executor's warm-up answers. What is learned while serving (quantiles, drift) plugs
in behind the same protocol.
"""

from collections.abc import Mapping
from typing import Protocol


class LatencyModel(Protocol):
    """Predicted compute time by model and bucket."""

    def predict_ns(self, model: int, bucket: int) -> int:
        """Nanoseconds from dispatch to outputs ready for a full batch of `bucket` items."""
        ...


class WarmUpLatency:
    """What warm-up measured: one figure per bucket, made monotone in the size of the batch."""

    def __init__(self) -> None:
        self._ns: dict[int, dict[int, int]] = {}

    def seed(self, model: int, measured_ns: Mapping[int, int]) -> None:
        """Takes the measurements of one model, bucket size to nanoseconds.

        A larger batch cannot really be faster; where noise says so, the larger figure holds for both.
        """
        longest = 0
        monotone = {}
        for bucket, ns in sorted(measured_ns.items()):
            longest = max(longest, ns)
            monotone[bucket] = longest
        self._ns[model] = monotone

    def predict_ns(self, model: int, bucket: int) -> int:
        """See `LatencyModel`; 0 for a model that was never seeded."""
        return self._ns.get(model, {}).get(bucket, 0)
