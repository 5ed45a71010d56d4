"""One model between slots and outputs: a partition, a dispatcher and an instance in one thread."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.dynamic_cpu import cpu_instance
from scheduler.executor.instance import Instance
from scheduler.executor.runner import Array, Runner
from scheduler.latency import LearnedLatency
from scheduler.partition import Outcome, Partition, Submission
from scheduler.policy import BatchPlan
from scheduler.signature import DataType, ModelSignature, TensorSpec

Compute = Callable[[Sequence[Array]], Sequence[Array]]
# What a request ended as: its outputs, or why there are none.
Answer = list[Array] | Outcome


def signature(
    *,
    inputs: Sequence[TensorSpec] = (TensorSpec("x", DataType.FP32, (2,)),),
    outputs: Sequence[TensorSpec] = (TensorSpec("y", DataType.FP32, (2,)),),
    finite_outputs: bool = True,
) -> ModelSignature:
    """Of a model named m."""
    return ModelSignature("m", 1, tuple(inputs), tuple(outputs), True, finite_outputs)


class Function:
    """A runner that is a Python function of arrays."""

    def __init__(self, its_signature: ModelSignature, compute: Compute) -> None:
        self.signature = its_signature
        self.run = compute


class Passage:
    """Requests go in at one end and answers come out at the other, one batch at a time."""

    def __init__(self, runner: Runner, buckets: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        self.runner = runner
        self.clock = VirtualClock(1000)
        self.failures: list[tuple[Batch, Exception, FailureExtent]] = []
        self.compute_ns: list[int] = []  # of the requests, in the order in which they ended
        self.arena = Arena.anonymous(
            Dimensions(
                frontends=1,
                models=1,
                slots_per_frontend=32,
                input_row_bytes=runner.signature.input_row_bytes,
                output_row_bytes=runner.signature.output_row_bytes,
            )
        )
        self._fds = [os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)]
        self.partition = Partition(self.arena, 0, self._fds[0], self._fds[1:])
        port = _ring.EnginePort(self.arena.native, 0, self._fds[1], self._fds[:1])
        plan = BatchPlan(buckets, (0,) * _ring.CLASSES, None)
        self.latency = LearnedLatency()
        self.dispatcher = Dispatcher(port, [plan], self.latency, self.clock)
        self.instance = self.make_instance(runner, buckets)

    def make_instance(self, runner: Runner, buckets: tuple[int, ...]) -> Instance:
        return cpu_instance(
            self.arena,
            self.dispatcher,
            {0: runner},
            buckets[-1],
            self.clock,
            lambda *failure: self.failures.append(failure),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for fd in self._fds:
            os.close(fd)

    def ask(self, *requests: Sequence[Array], timeouts_ns: Sequence[int | None] = ()) -> list[Answer]:
        """Runs these requests, all queued before the first batch goes; arrays carry the batch dimension.

        `timeouts_ns`: of the first requests; None, and the others: none.
        """
        answers: list[Answer] = [Outcome.LOST] * len(requests)
        for index, arrays in enumerate(requests):
            timeout_ns = timeouts_ns[index] if index < len(timeouts_ns) else None
            self._push(arrays, timeout_ns, partial(self._end, answers, index))
        while isinstance(batch := self.dispatcher.poll(), Batch):
            self.instance.run(batch)
            self.partition.drain()
        self.partition.check_integrity()
        assert self.partition.free_slots == 32
        return answers

    def _push(
        self, arrays: Sequence[Array], timeout_ns: int | None, on_end: Callable[[Submission], None]
    ) -> None:
        its = self.runner.signature
        submission = self.partition.reserve(len(arrays[0]), 0, 0, on_end)
        shapes = [np.shape(array)[1:] for array in arrays]
        for spec, offset, shape, array in zip(its.inputs, its.input_offsets, shapes, arrays, strict=True):
            data = np.ascontiguousarray(array, spec.data_type.dtype).tobytes()
            self.partition.write_input(submission, offset, spec.bytes_of(shape), data)
        if its.is_dynamic:
            header = its.input_header.encode(shapes)
            self.partition.write_input(submission, 0, len(header), header * len(arrays[0]))
        now_ns = self.clock.now_ns()
        self.partition.push(
            submission,
            engine=0,
            key=now_ns,
            enqueued_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE if timeout_ns is None else now_ns + timeout_ns,
            exclusive=False,
        )

    def _end(self, answers: list[Answer], index: int, submission: Submission) -> None:
        its = self.runner.signature
        answers[index] = submission.outcome
        self.compute_ns.append(submission.compute_ns)
        if submission.outcome is Outcome.RESULT:
            rows = len(submission.slots)
            size_bytes = its.output_header.size_bytes
            headers = self.partition.output(submission, 0, size_bytes)
            assert headers == headers[:size_bytes] * rows, "rows of one request have different shapes"
            shapes = its.output_header.decode(headers[:size_bytes])
            answers[index] = [
                np.frombuffer(
                    self.partition.output(submission, offset, spec.bytes_of(shape)), spec.data_type.dtype
                ).reshape(rows, *shape)
                for spec, offset, shape in zip(its.outputs, its.output_offsets, shapes, strict=True)
            ]
        self.partition.release(submission)
