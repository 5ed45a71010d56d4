"""CUDA instances for models with dynamic shapes: every batch is staged and launched plainly.

A graph is of one shape, and so is what a mapped slab is read by; neither pays where every batch may have
another one.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Dispatcher
from scheduler.executor.by_shape import ByShape, Shapes, extremes, item_shapes, seeds
from scheduler.executor.cuda import SETTLING_LAUNCHES, CudaDevice, CudaInstance
from scheduler.executor.cuda_calls import Array, CudaCalls, Tensor
from scheduler.executor.cuda_faults import Fault
from scheduler.executor.instance import FailureReport, Instance, Passage, Slots, check_outputs, in_shapes
from scheduler.executor.routed import of_both_kinds
from scheduler.executor.runner import DeviceModel, ModelUnusable
from scheduler.signature import ModelSignature, TensorSpec


class ShapedBuffers:
    """Room for the largest batch of one model on both sides, seen in the shapes of a batch.

    Host memory is page-locked, and free to be written again once the stream has been waited for.
    """

    def __init__(self, calls: CudaCalls, signature: ModelSignature, max_batch: int) -> None:
        def rooms(specs: Sequence[TensorSpec]) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
            return [
                ((max_batch * spec.item_bytes // spec.data_type.itemsize,), spec.data_type.dtype)
                for spec in specs
            ]

        self._calls = calls
        self._inputs = [calls.device(*room) for room in rooms(signature.inputs)]
        self._host_inputs = [calls.host(*room) for room in rooms(signature.inputs)]
        self._host_outputs = [calls.host(*room) for room in rooms(signature.outputs)]

    def host_inputs(self, bucket: int, shapes: Shapes) -> list[Array]:
        """Where the rows are gathered: an array `[bucket, *shape]` per input."""
        return [_array(host.array, bucket, s) for host, s in zip(self._host_inputs, shapes, strict=True)]

    def enqueue_inputs(self, bucket: int, shapes: Shapes) -> list[Tensor]:
        """Enqueues their copies to the device; the same there."""
        tensors = []
        for host, device, shape in zip(self._host_inputs, self._inputs, shapes, strict=True):
            tensor = self._calls.shaped(device, (bucket, *shape))
            self._calls.copy(tensor, self._calls.shaped(host.tensor, (bucket, *shape)))
            tensors.append(tensor)
        return tensors

    def enqueue_fetch(self, outputs: Sequence[Tensor], bucket: int, shapes: Shapes) -> list[Array]:
        """Enqueues the copies of outputs to the host; where they are, once the stream has been waited for."""
        arrays = []
        for host, output, shape in zip(self._host_outputs, outputs, shapes, strict=True):
            self._calls.copy(self._calls.shaped(host.tensor, (bucket, *shape)), output)
            arrays.append(_array(host.array, bucket, shape))
        return arrays


class DynamicCudaInstance(ByShape, CudaInstance):
    """What becomes of errors, of memory that runs out and of deadlines is as for fixed shapes."""

    def __init__(
        self,
        arena: Arena,
        dispatcher: Dispatcher,
        models: Mapping[int, DeviceModel],
        clock: Clock,
        on_failure: FailureReport,
        device: CudaDevice,
        *,
        max_batch: int,
        urgent: bool = False,
    ) -> None:
        """See `CudaInstance`."""
        super().__init__(
            arena, dispatcher, models, clock, on_failure, device, max_batch=max_batch, urgent=urgent
        )
        self._rooms: dict[int, ShapedBuffers] = {}
        self._smallest_ns: dict[int, dict[int, int]] = {place: {} for place in models}

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `CudaInstance`. On the largest and the smallest shapes."""
        return seeds(super().warm_up(model, buckets, rounds), self._smallest_ns[model])

    def settle(self) -> None:
        """See `Instance`. Of every bucket that is warm, the largest and the smallest shapes."""
        try:
            for model, buckets in self._warm.items():
                for bucket in buckets:
                    for shapes in extremes(self._signatures[model]):
                        self._run_zeros(model, bucket, shapes)
        except Exception as error:
            self._fault(error)
            raise

    def _launch(self, model: int, slots: Slots, bucket: int, *, pad: bool) -> Passage:
        del pad  # always
        shapes = self._shapes(model, slots)
        self._gather(model, slots, self._rooms[model].host_inputs(bucket, shapes))
        start_ns = self._clock.now_ns()
        outputs = self._compute(model, bucket, shapes)
        end_ns = self._clock.now_ns()
        return Passage(start_ns, end_ns, self._scatter_shaped(model, slots, bucket, outputs))

    def _forget(self, model: int, bucket: int) -> None:
        """Nothing of a batch is ever seen by another."""

    def _make_buffers(self, model: int, max_batch: int) -> None:
        with self._calls.on(self._stream):
            self._rooms[model] = ShapedBuffers(self._calls, self._signatures[model], max_batch)
        self._calls.finish(self._stream)

    def _prepare(self, model: int, bucket: int, rounds: int) -> tuple[int, int]:
        """Nanoseconds of the largest shapes, and the bytes that a launch of them allocates."""
        largest, smallest = extremes(self._signatures[model])
        for shapes in (largest, smallest):
            for _ in range(SETTLING_LAUNCHES):
                self._run_zeros(model, bucket, shapes)
        # Not of the first launch: libraries allocate workspaces then, which they keep.
        peak_bytes = self._calls.peak_bytes(lambda: self._run_zeros(model, bucket, largest))
        largest_ns = self._measure_shapes(model, bucket, largest, rounds)
        self._smallest_ns[model][bucket] = self._measure_shapes(model, bucket, smallest, rounds)
        self._device.notes.info(
            "bucket is warm",
            model=self._signatures[model].name,
            bucket=bucket,
            program="plain, by shape",
            us=largest_ns // 1000,
        )
        return largest_ns, peak_bytes

    def _measure_shapes(self, model: int, bucket: int, shapes: Shapes, rounds: int) -> int:
        times = []
        for _ in range(rounds):
            started_ns = self._clock.now_ns()
            self._run_zeros(model, bucket, shapes)
            times.append(self._clock.now_ns() - started_ns)
        return int(statistics.median(times))

    def _run_zeros(self, model: int, bucket: int, shapes: Shapes) -> None:
        zeros = self._rooms[model].host_inputs(bucket, shapes)
        for array in zeros:
            array[:] = 0
        try:
            self._compute(model, bucket, shapes)
        except ModelUnusable:
            raise
        except Exception as error:
            if self._fault(error) is not Fault.MODEL:
                raise
            signature = self._signatures[model]
            raise ModelUnusable(
                f"{signature.name} fails on {bucket} rows of zeros{in_shapes(signature, zeros)}: {error}"
            ) from error

    def _compute(self, model: int, bucket: int, shapes: Shapes) -> list[Array]:
        """What has been gathered to the device, through the model and back."""
        rooms = self._rooms[model]
        with self._calls.on(self._stream):
            outputs = self._models[model].forward(rooms.enqueue_inputs(bucket, shapes))
            layouts = [self._calls.layout(output) for output in outputs]
            # Before they are copied: there is no room for more than the manifest allows.
            check_outputs(self._signatures[model], layouts, bucket)
            arrays = rooms.enqueue_fetch(outputs, bucket, item_shapes(layouts))
        self._calls.finish(self._stream)
        return arrays


def cuda_instance(
    arena: Arena,
    dispatcher: Dispatcher,
    models: Mapping[int, DeviceModel],
    clock: Clock,
    on_failure: FailureReport,
    device: CudaDevice,
    *,
    max_batch: int,
    urgent: bool = False,
) -> Instance:
    """An instance on a GPU, for models of any kind by place; see `CudaInstance`."""
    return of_both_kinds(
        models,
        lambda fixed: CudaInstance(
            arena, dispatcher, fixed, clock, on_failure, device, max_batch=max_batch, urgent=urgent
        ),
        lambda dynamic: DynamicCudaInstance(
            arena, dispatcher, dynamic, clock, on_failure, device, max_batch=max_batch, urgent=urgent
        ),
    )


def _array(flat: Array, bucket: int, shape: tuple[int, ...]) -> Array:
    return flat[: bucket * int(np.prod(shape, dtype=np.int64))].reshape(bucket, *shape)
