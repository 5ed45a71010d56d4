"""CPU instances: gather rows from the slots, run the model on this thread, scatter the outputs."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Dispatcher
from scheduler.executor.instance import (
    FailureReport,
    Passage,
    SlotInstance,
    Slots,
    check_outputs,
    in_shapes,
    item_rows,
)
from scheduler.executor.runner import Array, ModelUnusable, Runner
from scheduler.signature import ModelSignature


class CpuInstance(SlotInstance):
    """Owns one staging array per model input; the runners are shared with the other instances.

    Staging is written by the gather of this batch and read by the model; rows past the batch's size
    are padding and hold what an earlier batch left there, which no live row depends on.
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
        """`stopwatch`: what warm-up measures with, where that is not the clock."""
        """`runners`: by place, the model's index in the arena."""
        signatures = {place: runner.signature for place, runner in runners.items()}
        super().__init__(arena, dispatcher, signatures, max_batch, clock, on_failure)
        self._runners = runners
        self._stopwatch = stopwatch or clock
        self._staging = {place: _staging(signature, max_batch) for place, signature in signatures.items()}
        # The same memory as rows of bytes, with where each input starts in a slot.
        self._rows = {
            place: [
                (offset, item_rows(staging, spec))
                for spec, offset, staging in zip(
                    signature.inputs, signature.input_offsets, self._staging[place], strict=True
                )
            ]
            for place, signature in signatures.items()
        }

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `Instance`."""
        runner = self._runners[model]
        measured = {}
        for bucket in buckets:
            inputs = [array[:bucket] for array in self._staging[model]]
            measured[bucket] = measure(runner, inputs, rounds, self._stopwatch)
        self._warm[model] = tuple(buckets)
        return measured

    def _pass(self, model: int, slots: Slots, bucket: int, *, pad: bool = False) -> Passage:
        count = len(slots)
        for offset, rows in self._rows[model]:
            self._native.gather_inputs(slots, offset, rows)
        inputs = [staging[:bucket] for staging in self._staging[model]]
        if pad:
            for staging in inputs:
                staging[count:] = 0
        start_ns = self._clock.now_ns()
        outputs = self._runners[model].run(inputs)
        end_ns = self._clock.now_ns()
        return Passage(start_ns, end_ns, self._scatter(model, slots, bucket, outputs))

    def _forget(self, model: int, bucket: int) -> None:
        for staging in self._staging[model]:
            staging[:bucket] = 0


def measure(runner: Runner, zeros: Sequence[Array], rounds: int, clock: Clock) -> int:
    """Runs a batch of zeros; the median of its later rounds, nanoseconds.

    Raises:
        ModelUnusable: see `Instance.warm_up`.
    """
    bucket = len(zeros[0])
    times = []
    for _ in range(rounds):
        started_ns = clock.now_ns()
        try:
            outputs = runner.run(zeros)
        except Exception as error:
            raise ModelUnusable(
                f"{runner.signature.name} fails on {bucket} rows of zeros"
                f"{in_shapes(runner.signature, zeros)}: {error}"
            ) from error
        times.append(clock.now_ns() - started_ns)
        check_outputs(runner.signature, outputs, bucket)
    # TorchScript compiles in its first two calls of a shape; those say nothing about the third.
    return int(statistics.median(times[min(2, rounds - 1) :]))


def _staging(signature: ModelSignature, max_batch: int) -> list[Array]:
    return [np.zeros((max_batch, *spec.shape), dtype=spec.data_type.dtype) for spec in signature.inputs]
