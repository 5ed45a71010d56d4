"""CPU instances for models with dynamic shapes."""

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Dispatcher
from scheduler.executor.by_shape import ByShape, Shapes, extremes, seeds
from scheduler.executor.cpu import CpuInstance, measure
from scheduler.executor.instance import FailureReport, Instance, Passage, Slots
from scheduler.executor.routed import of_both_kinds
from scheduler.executor.runner import Array, Runner


class DynamicCpuInstance(ByShape):
    """Owns staging for the largest batch of every input, and sees it in the shape of the batch.

    Padding is always zeros: what an earlier batch of another shape left there is no row of this one.
    """

    def __init__(
        self,
        arena: Arena,
        dispatcher: Dispatcher,
        runners: Mapping[int, Runner],
        max_batch: int,
        clock: Clock,
        on_failure: FailureReport,
        stopwatch: Clock | None = None,
    ) -> None:
        """`runners`: by place, the model's index in the arena. `stopwatch`: see `CpuInstance`."""
        signatures = {place: runner.signature for place, runner in runners.items()}
        super().__init__(arena, dispatcher, signatures, max_batch, clock, on_failure)
        self._runners = runners
        self._stopwatch = stopwatch or clock
        self._staging = {
            place: [np.zeros(max_batch * spec.item_bytes, np.uint8) for spec in signature.inputs]
            for place, signature in signatures.items()
        }

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `Instance`. On the largest and the smallest shapes."""
        runner = self._runners[model]
        largest_ns, smallest_ns = (
            {
                bucket: measure(runner, self._zeros(model, bucket, shapes), rounds, self._stopwatch)
                for bucket in buckets
            }
            for shapes in extremes(runner.signature)
        )
        self._warm[model] = tuple(buckets)
        return seeds(largest_ns, smallest_ns)

    def _pass(self, model: int, slots: Slots, bucket: int, *, pad: bool = False) -> Passage:
        del pad  # always
        inputs = self._views(model, bucket, self._shapes(model, slots))
        self._gather(model, slots, inputs)
        start_ns = self._clock.now_ns()
        outputs = self._runners[model].run(inputs)
        end_ns = self._clock.now_ns()
        return Passage(start_ns, end_ns, self._scatter_shaped(model, slots, bucket, outputs))

    def _forget(self, model: int, bucket: int) -> None:
        """Nothing of a batch is ever seen by another."""

    def _zeros(self, model: int, bucket: int, shapes: Shapes) -> list[Array]:
        inputs = self._views(model, bucket, shapes)
        for array in inputs:
            array[:] = 0
        return inputs

    def _views(self, model: int, bucket: int, shapes: Shapes) -> list[Array]:
        """The beginning of each staging, as an array `[bucket, *shape]`."""
        specs = self._signatures[model].inputs
        return [
            staging[: bucket * spec.bytes_of(shape)].view(spec.data_type.dtype).reshape(bucket, *shape)
            for staging, spec, shape in zip(self._staging[model], specs, shapes, strict=True)
        ]


def cpu_instance(
    arena: Arena,
    dispatcher: Dispatcher,
    runners: Mapping[int, Runner],
    max_batch: int,
    clock: Clock,
    on_failure: FailureReport,
    stopwatch: Clock | None = None,
) -> Instance:
    """An instance on a CPU, for models of any kind by place."""
    return of_both_kinds(
        runners,
        lambda fixed: CpuInstance(arena, dispatcher, fixed, max_batch, clock, on_failure, stopwatch),
        lambda dynamic: DynamicCpuInstance(
            arena, dispatcher, dynamic, max_batch, clock, on_failure, stopwatch
        ),
    )
