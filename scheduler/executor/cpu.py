"""CPU instances: gather rows from the slots, run the model on this thread, scatter the outputs."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.instance import FailureReport
from scheduler.executor.runner import Array, ModelUnusable, Runner
from scheduler.partition import Outcome
from scheduler.signature import ModelSignature, TensorSpec


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
        self._failed = np.full(max_batch, Outcome.ERROR, dtype=np.uint8)

    def run(self, batch: Batch) -> None:
        """See `Instance`."""
        outcomes = self._failed[: len(batch.slots)]
        inputs = self._gather(batch)
        start_ns = self._clock.now_ns()
        try:
            outputs = self._runners[batch.model].run(inputs)
            end_ns = self._clock.now_ns()
            outcomes = self._scatter(batch, outputs)
        except Exception as error:  # the model's own, of any kind: these items fail, the engine goes on
            end_ns = self._clock.now_ns()
            self._forget(batch)
            self._on_failure(batch, error)
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
        return measured

    def _gather(self, batch: Batch) -> list[Array]:
        signature = self._runners[batch.model].signature
        inputs = []
        for spec, offset, staging in zip(
            signature.inputs,
            signature.input_offsets,
            self._staging[batch.model],
            strict=True,
        ):
            self._native.gather_inputs(batch.slots, offset, _rows(staging, spec)[: len(batch.slots)])
            inputs.append(staging[: batch.bucket])
        return inputs

    def _forget(self, batch: Batch) -> None:
        """A row that made the model raise must not come back as the padding of a later batch."""
        for staging in self._staging[batch.model]:
            staging[: batch.bucket] = 0

    def _scatter(self, batch: Batch, outputs: Sequence[Array]) -> Array:
        signature = self._runners[batch.model].signature
        count = len(batch.slots)
        outcomes = self._ok[:count]
        for spec, offset, output in zip(signature.outputs, signature.output_offsets, outputs, strict=True):
            live = output[:count]
            self._native.scatter_outputs(batch.slots, offset, _rows(live, spec))
            # A sum is finite only if every element is: one call settles the usual case.
            if signature.finite_outputs and spec.data_type.is_float and not math.isfinite(live.sum()):
                finite = np.isfinite(live).reshape(count, -1).all(axis=1)
                outcomes = np.where(finite, outcomes, np.uint8(Outcome.NON_FINITE))
        return outcomes


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
