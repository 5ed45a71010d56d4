"""What the engine adds to the model: look, decide, take, gather, scatter, complete; for gates."""

import os
import statistics
import time
from collections.abc import Sequence

import numpy as np

from bench.timing import median_us
from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.runner import Array
from scheduler.latency import LearnedLatency
from scheduler.partition import Partition
from scheduler.policy import BatchPlan
from scheduler.signature import DataType, ModelSignature, TensorSpec

BATCH = 32
ROUNDS = 300

SIGNATURE = ModelSignature(
    name="windows",
    version=1,
    inputs=(TensorSpec("window", DataType.FP32, (50, 60)),),
    outputs=(TensorSpec("probs", DataType.FP32, (3,)), TensorSpec("features", DataType.FP32, (128,))),
)


class InstantRunner:
    """Answers at once with outputs made beforehand: the model is not what is measured."""

    @property
    def signature(self) -> ModelSignature:
        return SIGNATURE

    def __init__(self) -> None:
        self._outputs = [np.zeros((BATCH, *spec.shape), dtype=np.float32) for spec in SIGNATURE.outputs]

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        return [output[: len(inputs[0])] for output in self._outputs]


def overhead_us() -> tuple[float, float]:
    """Of an item of a batch of 32: everything the engine does but the model, and one copy in and one out."""
    arena = Arena.anonymous(
        Dimensions(1, 1, 2 * BATCH, SIGNATURE.input_row_bytes, SIGNATURE.output_row_bytes)
    )
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    partition = Partition(arena, 0, fds[0], [fds[1]])
    port = _ring.EnginePort(arena.native, 0, fds[1], [fds[0]])
    clock = MonotonicClock()
    plans = [BatchPlan((1, 2, 4, 8, 16, BATCH), (0,) * 5, None)]
    dispatcher = Dispatcher(port, plans, LearnedLatency(), clock)
    instance = CpuInstance(arena, dispatcher, {0: InstantRunner()}, BATCH, clock, lambda *_: None)
    window = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32).tobytes()
    times = []
    for _ in range(ROUNDS):
        partition.drain()
        for index in range(BATCH):
            submission = partition.reserve(1, 0, index % 5, partition.release)
            partition.write_input(submission, 0, len(window), window)
            now = clock.now_ns()
            partition.push(
                submission, engine=0, key=now, enqueued_ns=now,
                deadline_ns=_ring.NO_DEADLINE, exclusive=False,
            )  # fmt: skip
        started = time.perf_counter()
        batch = dispatcher.poll()
        assert isinstance(batch, Batch)
        assert len(batch.slots) == BATCH
        instance.run(batch)
        times.append(time.perf_counter() - started)
    for fd in fds:
        os.close(fd)
    return statistics.median(times) / BATCH * 1e6, copy_floor_us(arena)


def copy_floor_us(arena: Arena) -> float:
    """Microseconds to copy one input row in and one output row out, as one numpy copy of 32 rows each."""
    staged = np.empty((BATCH, arena.native.input_row_bytes), dtype=np.uint8)
    made = np.zeros((BATCH, arena.native.output_row_bytes), dtype=np.uint8)

    def copy() -> None:
        np.copyto(staged, arena.input_rows[:BATCH])
        np.copyto(arena.output_rows[:BATCH], made)

    return median_us(copy, ROUNDS) / BATCH
