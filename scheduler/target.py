"""The size of batch that is worth waiting for, and never exceeded: per model, following the latency model.

The largest bucket predicted to fit the latency budget. Two things keep it from fluttering: a bucket is
entered only with some room to spare, and left only when it no longer fits. Pressure on the host or on the
device may only shrink it, bucket by bucket; a limit, such as memory that ran out, holds in any case.
"""

from collections.abc import Sequence

from scheduler.latency import LatencyModel
from scheduler.policy import BatchPlan

# A larger bucket is entered only when it is predicted to take at most this part of the budget.
ENTER_PART = 0.9


class TargetSizes:
    """The target size of every model of one engine."""

    def __init__(self, plans: Sequence[BatchPlan], latency: LatencyModel) -> None:
        self._plans = plans
        self._latency = latency
        self._steps_down = 0
        self._largest: dict[int, int] = {}
        # Positions in the plans' buckets, before pressure.
        self._at = [0] * len(plans)
        self.sizes = [plan.buckets[0] for plan in plans]
        self.restart()

    def restart(self) -> None:
        """Starts from what is predicted now, as after warm-up: the largest bucket that fits."""
        for model, plan in enumerate(self._plans):
            self._at[model] = max(
                (at for at in range(len(plan.buckets)) if self._fits(model, at, 1.0)), default=0
            )
            self._set(model)

    def update(self, model: int) -> None:
        """Follows the latency model by at most one bucket. After a batch of this model."""
        at = self._at[model]
        if not self._fits(model, at, 1.0):
            self._at[model] = max(0, at - 1)
        elif at + 1 < len(self._plans[model].buckets) and self._fits(model, at + 1, ENTER_PART):
            self._at[model] = at + 1
        else:
            return
        self._set(model)

    def shrink(self, steps: int) -> None:
        """Pressure: every adaptive target is this many buckets smaller from now on, at least the smallest."""
        self._steps_down = steps
        for model in range(len(self._plans)):
            self._set(model)

    def replan(self, plans: Sequence[BatchPlan]) -> None:
        """Other budgets, for the same buckets: starts again from what is predicted now."""
        self._plans = plans
        self.restart()

    def limit(self, model: int, largest: int | None) -> None:
        """Whatever fits the budget, no batch of this model is larger from now on; None: no limit."""
        if largest is None:
            self._largest.pop(model, None)
        else:
            self._largest[model] = largest
        self._set(model)

    def _fits(self, model: int, at: int, part: float) -> bool:
        plan = self._plans[model]
        return (
            plan.budget_ns is None
            or self._latency.predict_ns(model, plan.buckets[at]) <= plan.budget_ns * part
        )

    def _set(self, model: int) -> None:
        plan = self._plans[model]
        steps = self._steps_down if plan.budget_ns is not None else 0
        size = plan.buckets[max(0, self._at[model] - steps)]
        self.sizes[model] = min(size, self._largest.get(model, size))
