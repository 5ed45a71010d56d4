"""When a batch goes, and how big it is. Pure: no clock, no lock, no I/O.

`decide` is asked whenever an instance is free. It sees what is queued and answers with a batch or with
the instant at which to ask again (a push asks earlier by itself). Keys, and therefore the order, are
settled before: a batch always takes the smallest keys first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.latency import LatencyModel

# Target batches that must be queued before a spare instance helps.
SPARE_BATCHES = 3


class ClassBacklog(NamedTuple):
    """The queued items of one class of one model."""

    model: int
    class_index: int
    depth: int
    key: int  # smallest, ns
    enqueued_ns: int  # of the oldest
    deadline_ns: int | None  # soonest among the lane heads


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the batches of one model are formed.

    Attributes:
        buckets: batch sizes that are warmed up, ascending, at least one.
        max_wait_ns: by class index, how long the oldest item may wait for company.
        budget_ns: the target size is the largest bucket predicted to fit; None fixes it to the largest.
    """

    buckets: tuple[int, ...]
    max_wait_ns: tuple[int, ...]
    budget_ns: int | None

    def target_size(self, model: int, latency: LatencyModel) -> int:
        """The size that is worth waiting for, and never exceeded; at least the smallest bucket."""
        if self.budget_ns is None:
            return self.buckets[-1]
        fitting = [b for b in self.buckets if latency.predict_ns(model, b) <= self.budget_ns]
        return fitting[-1] if fitting else self.buckets[0]

    def bucket_for(self, count: int) -> int:
        """The smallest bucket that holds `count` items."""
        for bucket in self.buckets:
            if bucket >= count:
                return bucket
        raise ValueError(f"{count} items in a batch, the largest bucket is {self.buckets[-1]}")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run up to `count` items of `model` now."""

    model: int
    count: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to run before this instant unless something is pushed; None: not at all."""

    at_ns: int | None


def decide(
    backlog: Sequence[ClassBacklog], plans: Sequence[BatchPlan], latency: LatencyModel, now_ns: int
) -> Dispatch | WaitUntil:
    """The next step for a free instance.

    A model's batch goes when its target size is queued, when the oldest item of some class has waited
    that class's `max_wait`, or when waiting on would miss a deadline. Of the models whose batch goes,
    the one with the smallest key is first.

    Args:
        backlog: the non-empty classes, of any models, in any order.
        plans: by model index.
    """
    due: dict[int, int] = {}  # model -> instant at which its batch goes
    depth: dict[int, int] = {}
    key: dict[int, int] = {}
    for waiting in backlog:
        model = waiting.model
        plan = plans[model]
        depth[model] = depth.get(model, 0) + waiting.depth
        key[model] = min(key.get(model, waiting.key), waiting.key)
        at_ns = waiting.enqueued_ns + plan.max_wait_ns[waiting.class_index]
        if waiting.deadline_ns is not None:
            alone_ns = latency.predict_ns(model, plan.bucket_for(min(waiting.depth, plan.buckets[-1])))
            at_ns = min(at_ns, waiting.deadline_ns - alone_ns)
        due[model] = min(due.get(model, at_ns), at_ns)

    targets = {model: plans[model].target_size(model, latency) for model in depth}
    going = [m for m in depth if due[m] <= now_ns or depth[m] >= targets[m]]
    if not going:
        return WaitUntil(min(due.values(), default=None))
    first = min(going, key=key.__getitem__)
    return Dispatch(first, batch_size(first, plans[first], min(depth[first], targets[first]), latency))


def has_spare_work(
    backlog: Sequence[ClassBacklog], plans: Sequence[BatchPlan], latency: LatencyModel
) -> bool:
    """Whether an instance that shares its core with front ends should help out.

    Only with full batches, and only while more are queued than the other instances take next: with less
    it would take the core from the front ends, and the queue would be shorter for the wrong reason.
    """
    depth: dict[int, int] = {}
    for waiting in backlog:
        depth[waiting.model] = depth.get(waiting.model, 0) + waiting.depth
    return any(
        queued >= SPARE_BATCHES * plans[model].target_size(model, latency) for model, queued in depth.items()
    )


def batch_size(model: int, plan: BatchPlan, queued: int, latency: LatencyModel) -> int:
    """How many of `queued` items go at once.

    Either all of them, padded up to the next bucket, or a full smaller bucket now and the rest in the
    next batch: whichever computes more items per nanosecond. Padding is nearly free on a GPU and costs
    its full share on a CPU; the predictions know.
    """
    upper = plan.bucket_for(queued)
    lower = max((b for b in plan.buckets if b <= queued), default=upper)
    if upper == lower:
        return queued
    upper_ns = latency.predict_ns(model, upper)
    lower_ns = latency.predict_ns(model, lower)
    return queued if queued * lower_ns >= lower * upper_ns else lower
