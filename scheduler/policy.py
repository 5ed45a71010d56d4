"""When a batch goes, and how big it is. Pure: no clock, no lock, no I/O.

`decide` is asked whenever an instance is free. It sees what is queued and answers with a batch or with
the instant at which to ask again (a push asks earlier by itself). Keys, and therefore the order, are
settled before: a batch always takes the smallest keys first.

Classes that cannot stand back for one bulk quantum are urgent, the others are bulk; see
`scheduler.priority.urgent_classes`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.latency import LatencyModel

# Target batches that must be queued before a spare instance helps.
SPARE_BATCHES = 2
# Bulk rides along with urgent work as long as the batch takes at most this many times as long for it.
RIDER_COST = 1.1


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
        quantum_ns: a batch with bulk in front is cut to the largest bucket predicted to fit; None: never.
        urgent: by class index, whether the class is urgent.
    """

    buckets: tuple[int, ...]
    max_wait_ns: tuple[int, ...]
    budget_ns: int | None
    quantum_ns: int | None = None
    urgent: tuple[bool, ...] = (True, True, False, False, False)

    def bucket_for(self, count: int) -> int:
        """The smallest bucket that holds `count` items."""
        at = bisect_left(self.buckets, count)
        if at == len(self.buckets):
            raise ValueError(f"{count} items in a batch, the largest bucket is {self.buckets[-1]}")
        return self.buckets[at]


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
    backlog: Sequence[ClassBacklog],
    plans: Sequence[BatchPlan],
    targets: Sequence[int],
    latency: LatencyModel,
    now_ns: int,
) -> Dispatch | WaitUntil:
    """The next step for a free instance.

    A model's batch goes when its target size is queued, when the oldest item of some class has waited
    that class's `max_wait`, or when waiting on would miss a deadline. Of the models whose batch goes,
    the one with the smallest key is first.

    Args:
        backlog: the non-empty classes, of any models, in any order; for an instance that is reserved for
            urgent work only those of urgent classes.
        plans: by model index.
        targets: by model index, the size that is worth waiting for and never exceeded.
    """
    by_model: dict[int, list[ClassBacklog]] = {}
    for waiting in backlog:
        by_model.setdefault(waiting.model, []).append(waiting)
    first, first_key, next_ns = None, 0, None
    for model, queued in by_model.items():
        due_ns = _due_ns(queued, plans[model], targets[model], latency, now_ns)
        if due_ns > now_ns:
            next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
            continue
        key = min([waiting.key for waiting in queued])
        if first is None or key < first_key:
            first, first_key = model, key
    if first is None:
        return WaitUntil(next_ns)
    queued, plan, target = by_model[first], plans[first], targets[first]
    count = _count(queued, plan, target, latency)
    return Dispatch(first, _in_time(queued, plan, target, count, latency, now_ns))


def has_spare_work(depth: Sequence[int], targets: Sequence[int]) -> bool:
    """Whether an instance that shares its core with front ends should help out.

    Only with full batches, and only while more are queued than the other instances take next: with less
    it would take the core from the front ends, and the queue would be shorter for the wrong reason.

    Args:
        depth: by model index, the items left behind by the batch just taken.
    """
    return any(queued >= SPARE_BATCHES * target for queued, target in zip(depth, targets, strict=True))


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


def _due_ns(
    queued: Sequence[ClassBacklog], plan: BatchPlan, target: int, latency: LatencyModel, now_ns: int
) -> int:
    """The instant at which the batch of one model goes."""
    if sum([waiting.depth for waiting in queued]) >= target:
        return now_ns
    due_ns = min([waiting.enqueued_ns + plan.max_wait_ns[waiting.class_index] for waiting in queued])
    if due_ns <= now_ns:
        return due_ns
    for waiting in queued:
        if waiting.deadline_ns is not None:
            alone_ns = latency.high_ns(waiting.model, plan.bucket_for(waiting.depth))
            due_ns = min(due_ns, waiting.deadline_ns - alone_ns)
    return due_ns


def _count(queued: Sequence[ClassBacklog], plan: BatchPlan, target: int, latency: LatencyModel) -> int:
    """How many items the batch of one model takes, deadlines aside."""
    model = queued[0].model
    total = urgent = 0
    urgent_key = bulk_key = None
    for waiting in queued:
        total += waiting.depth
        if plan.urgent[waiting.class_index]:
            urgent += waiting.depth
            urgent_key = waiting.key if urgent_key is None else min(urgent_key, waiting.key)
        else:
            bulk_key = waiting.key if bulk_key is None else min(bulk_key, waiting.key)
    if urgent_key is None or (bulk_key is not None and bulk_key < urgent_key):
        # Bulk is in front: the batch takes it, and whatever comes next waits for no longer than a quantum.
        return batch_size(model, plan, min(total, _within_quantum(model, plan, target, latency)), latency)

    bucket = plan.bucket_for(batch_size(model, plan, min(urgent, target), latency))
    limit_ns = RIDER_COST * latency.predict_ns(model, bucket)
    for larger in plan.buckets:
        if bucket < larger <= target and latency.predict_ns(model, larger) <= limit_ns:
            bucket = larger
    return min(total, bucket)  # what would be padding is filled with bulk


def _within_quantum(model: int, plan: BatchPlan, target: int, latency: LatencyModel) -> int:
    if plan.quantum_ns is None:
        return target
    fitting = [b for b in plan.buckets if b <= target and latency.predict_ns(model, b) <= plan.quantum_ns]
    return fitting[-1] if fitting else plan.buckets[0]


def _in_time(
    queued: Sequence[ClassBacklog],
    plan: BatchPlan,
    target: int,
    count: int,
    latency: LatencyModel,
    now_ns: int,
) -> int:
    """Cuts a batch so that the tightest deadline in it holds, where that helps.

    It helps while what is at least as urgent as the tight item fits one batch. With more queued than that,
    smaller batches would only make all that waits later, and miss one deadline after another: then
    the batch goes as it is, and the item that it would be too late for expires instead.
    """
    model = queued[0].model
    tight_ns, tight_class, tight_key = min(
        [(w.deadline_ns, w.class_index, w.key) for w in queued if w.deadline_ns is not None],
        default=(None, 0, 0),
    )
    if tight_ns is None:
        return count
    left_ns = tight_ns - now_ns
    if latency.high_ns(model, plan.bucket_for(count)) <= left_ns:
        return count
    if sum([w.depth for w in queued if w.class_index <= tight_class]) > target:
        return count
    # Those before it in the order would fill a batch that is too small, and it would not be in it.
    ahead = sum([w.depth for w in queued if w.key < tight_key])
    fitting = [b for b in plan.buckets if ahead < b < count and latency.high_ns(model, b) <= left_ns]
    return fitting[-1] if fitting else count
