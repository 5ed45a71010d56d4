"""Instances for models of both kinds: with fixed shapes, and with dynamic ones.

A model is of one kind, so each kind has an instance of its own, and neither looks for what is the other's.
Where all models of a device are of one kind, that instance stands alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from scheduler.dispatcher import Batch
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceModel, Runner

Model = TypeVar("Model", Runner, DeviceModel)


class Routed(Instance):
    """Two instances of one thread; each runs the batches of its models."""

    def __init__(self, fixed: Instance, dynamic: Instance, is_dynamic: Mapping[int, bool]) -> None:
        """`is_dynamic`: by place."""
        self._kinds = (fixed, dynamic)
        self._by_place = {place: self._kinds[its] for place, its in is_dynamic.items()}

    def run(self, batch: Batch) -> None:
        """See `Instance`."""
        self._by_place[batch.model].run(batch)

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `Instance`."""
        return self._by_place[model].warm_up(model, buckets, rounds)

    def settle(self) -> None:
        """See `Instance`."""
        for instance in self._kinds:
            instance.settle()


def of_both_kinds(
    models: Mapping[int, Model],
    make_fixed: Callable[[Mapping[int, Model]], Instance],
    make_dynamic: Callable[[Mapping[int, Model]], Instance],
) -> Instance:
    """An instance for all of these models, by place."""
    is_dynamic = {place: model.signature.is_dynamic for place, model in models.items()}
    fixed = {place: model for place, model in models.items() if not is_dynamic[place]}
    dynamic = {place: model for place, model in models.items() if is_dynamic[place]}
    if not dynamic:
        return make_fixed(fixed)
    if not fixed:
        return make_dynamic(dynamic)
    return Routed(make_fixed(fixed), make_dynamic(dynamic), is_dynamic)
