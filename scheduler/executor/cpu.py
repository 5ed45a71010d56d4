"""CPU instances: gather rows from the slots, run the model on this thread, scatter the outputs."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import Outcomes, bisect
from scheduler.executor.instance import FailureExtent, FailureReport
from scheduler.executor.runner import Array, DeviceLost, ModelUnusable, Runner
from scheduler.partition import Outcome
from scheduler.signature import ModelSignature, TensorSpec

Slots = npt.NDArray[np.uint32]


class CpuInstance:
    """Owns one staging array per model input; the runners are shared with the other instances.

    Staging is written by the gather of this batch and read by the model; rows past the batch's size
    are padding and hold what an earlier batch left there, which no live row depends on.
    """

    def __init__(
        self,
        arena: Arena,
        dispatcher: Dispatcher,
        runners: Sequence[Runner],
        max_batch: int,
        clock: Clock,
        on_failure: FailureReport,
    ) -> None:
        self._native = arena.native
        self._dispatcher = dispatcher
        self._runners = runners
        self._clock = clock
        self._on_failure = on_failure
        self._staging = [_staging(runner.signature, max_batch) for runner in runners]
        self._ok = np.full(max_batch, Outcome.RESULT, dtype=np.uint8)
        self._warm: list[Sequence[int]] = [()] * len(runners)

    def run(self, batch: Batch) -> None:
        """See `Instance`."""
        inputs = self._gather(batch.model, batch.slots, batch.bucket)
        start_ns = self._clock.now_ns()
        try:
            outputs = self._runners[batch.model].run(inputs)
            end_ns = self._clock.now_ns()
            outcomes = self._scatter(batch.model, batch.slots, batch.bucket, outputs)
        except DeviceLost:
            raise
        except Exception as error:  # the model's own, of any kind: the rows to blame fail, the engine goes on
            outcomes, extent = self._bisect(batch)
            end_ns = self._clock.now_ns()
            self._forget(batch)
            self._on_failure(batch, error, extent)
            self._dispatcher.complete(batch, outcomes, start_ns, end_ns, in_parts=True)
        else:
            self._dispatcher.complete(batch, outcomes, start_ns, end_ns)

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `Instance`."""
        runner = self._runners[model]
        measured = {}
        for bucket in buckets:
            inputs = [array[:bucket] for array in self._staging[model]]
            times = []
            for _ in range(rounds):
                started_ns = self._clock.now_ns()
                try:
                    outputs = runner.run(inputs)
                except Exception as error:
                    raise ModelUnusable(
                        f"{runner.signature.name} fails on {bucket} rows of zeros: {error}"
                    ) from error
                times.append(self._clock.now_ns() - started_ns)
                _check_outputs(runner.signature, outputs, bucket)
            # TorchScript compiles in its first two calls of a shape; those say nothing about the third.
            measured[bucket] = int(statistics.median(times[min(2, rounds - 1) :]))
        self._warm[model] = tuple(buckets)
        return measured

    def _gather(self, model: int, slots: Slots, bucket: int) -> list[Array]:
        signature = self._runners[model].signature
        inputs = []
        for spec, offset, staging in zip(
            signature.inputs, signature.input_offsets, self._staging[model], strict=True
        ):
            self._native.gather_inputs(slots, offset, _rows(staging, spec)[: len(slots)])
            inputs.append(staging[:bucket])
        return inputs

    def _scatter(self, model: int, slots: Slots, bucket: int, outputs: Sequence[Array]) -> Outcomes:
        signature = self._runners[model].signature
        count = len(slots)
        outcomes = self._ok[:count]
        for spec, offset, output in zip(signature.outputs, signature.output_offsets, outputs, strict=True):
            if len(output) != bucket:  # also where enough are left: whose row is missing, nobody knows
                raise ValueError(f"{spec.name} has {len(output)} rows, the batch has {bucket}")
            live = output[:count]
            self._native.scatter_outputs(slots, offset, _rows(live, spec))
            # A sum is finite only if every element is: one call settles the usual case.
            if signature.finite_outputs and spec.data_type.is_float and not math.isfinite(live.sum()):
                finite = np.isfinite(live).reshape(count, -1).all(axis=1)
                outcomes = np.where(finite, outcomes, np.uint8(Outcome.NON_FINITE))
        return outcomes

    def _bisect(self, batch: Batch) -> tuple[Outcomes, FailureExtent]:
        """The rows are still in their slots: each part is gathered from there again."""
        deadlines_ns = np.empty(len(batch.slots), np.uint64)
        self._native.deadlines(batch.slots, deadlines_ns)
        return bisect(
            deadlines_ns, lambda positions: self._run_part(batch, batch.slots[positions]), self._clock
        )

    def _run_part(self, batch: Batch, slots: Slots) -> Outcomes:
        """Runs some rows of a batch that raised, padded with what the model was warmed up on: zeros."""
        bucket = self._bucket_for(batch, len(slots))
        inputs = self._gather(batch.model, slots, bucket)
        for staging in inputs:
            staging[len(slots) :] = 0
        return self._scatter(batch.model, slots, bucket, self._runners[batch.model].run(inputs))

    def _forget(self, batch: Batch) -> None:
        """A row that made the model raise must not come back as the padding of a later batch."""
        for staging in self._staging[batch.model]:
            staging[: batch.bucket] = 0

    def _bucket_for(self, batch: Batch, count: int) -> int:
        """The smallest size that was warmed up and holds `count` rows; where none was, the batch's own."""
        return min((b for b in self._warm[batch.model] if b >= count), default=batch.bucket)


def _staging(signature: ModelSignature, max_batch: int) -> list[Array]:
    return [np.zeros((max_batch, *spec.shape), dtype=spec.data_type.dtype) for spec in signature.inputs]


def _rows(array: Array, spec: TensorSpec) -> Array:
    """The array as bytes, one row per item: uint8 `[rows, item_bytes]`, no copy."""
    return array.reshape(len(array), -1).view(np.uint8).reshape(len(array), spec.item_bytes)


def _check_outputs(signature: ModelSignature, outputs: Sequence[Array], bucket: int) -> None:
    if len(outputs) != len(signature.outputs):
        raise ModelUnusable(
            f"{signature.name} returns {len(outputs)} outputs, its manifest names {len(signature.outputs)}"
        )
    for spec, output in zip(signature.outputs, outputs, strict=True):
        wanted = (bucket, *spec.shape)
        if output.shape != wanted or output.dtype != spec.data_type.dtype:
            raise ModelUnusable(
                f"{signature.name} returns {spec.name} as {output.dtype} {list(output.shape)}, "
                f"its manifest says {spec.data_type.dtype} {list(wanted)}"
            )
