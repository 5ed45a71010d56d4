"""A front end and an engine in one process, on a clock that the test turns."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Runner
from scheduler.latency import LearnedLatency
from scheduler.partition import Outcome, Partition, Submission
from scheduler.policy import BatchPlan
from scheduler.priority import DEFAULT_LIMITS, KeyStamp, PriorityClass
from scheduler.signature import DataType, ModelSignature, TensorSpec

MS = 1_000_000
EAGER = BatchPlan(buckets=(1, 2, 4, 8), max_wait_ns=(0, 0, 0, 0, 0), budget_ns=None)

SIGNATURE = ModelSignature(
    name="mean",
    version=1,
    inputs=(TensorSpec("x", DataType.FP32, (4,)), TensorSpec("scale", DataType.FP64, ())),
    outputs=(TensorSpec("mean", DataType.FP32, (1,)), TensorSpec("copies", DataType.FP64, (2, 3))),
)


@dataclass
class Answer:
    """What a submission ended as."""

    outcome: Outcome
    wait_ns: int
    batch_size: int
    outputs: list[np.ndarray]


@dataclass
class World:
    """Everything between a push and an answer, without a server."""

    plans: Sequence[BatchPlan] = (EAGER,)
    runners: Sequence[Runner] = ()
    slots: int = 32
    frontends: int = 1  # all but the first are the test's own
    instances: int = 1
    early_refusal: bool = True
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(1_000 * MS))
    failures: list[tuple[Batch, Exception, FailureExtent]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runners = self.runners or [FakeRunner(SIGNATURE) for _ in self.plans]
        self.arena = Arena.anonymous(
            Dimensions(
                frontends=self.frontends,
                models=len(self.plans),
                slots_per_frontend=self.slots,
                input_row_bytes=SIGNATURE.input_row_bytes,
                output_row_bytes=SIGNATURE.output_row_bytes,
            )
        )
        self.frontend_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.engine_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.partition = Partition(self.arena, 0, self.frontend_fd, [self.engine_fd])
        self.latency = LearnedLatency()
        self.port = _ring.EnginePort(
            self.arena.native, 0, self.engine_fd, [self.frontend_fd] * self.frontends
        )
        self.dispatcher = Dispatcher(
            self.port,
            self.plans,
            self.latency,
            self.clock,
            instances=self.instances,
            early_refusal=self.early_refusal,
        )
        self.instance = CpuInstance(
            self.arena,
            self.dispatcher,
            dict(enumerate(self.runners)),
            max(plan.buckets[-1] for plan in self.plans),
            self.clock,
            lambda *failure: self.failures.append(failure),
        )
        self.stamp = KeyStamp(len(self.plans), DEFAULT_LIMITS)
        self.answers: dict[str, Answer] = {}

    def close(self) -> None:
        os.close(self.frontend_fd)
        os.close(self.engine_fd)

    def submit(
        self,
        name: str,
        rows: Sequence[float] = (1.0,),
        *,
        cls: PriorityClass = PriorityClass.REAL_TIME_TRADING,
        model: int = 0,
        timeout_ns: int | None = None,
        exclusive: bool = False,
    ) -> Submission:
        """Pushes a request whose row i holds rows[i] in every element."""

        def ended(submission: Submission) -> None:
            assert name not in self.answers, f"{name} ended twice"
            outputs = []
            if submission.outcome is Outcome.RESULT:
                for spec, offset in zip(SIGNATURE.outputs, SIGNATURE.output_offsets, strict=True):
                    data = self.partition.output(submission, offset, spec.item_bytes)
                    shape = (len(submission.slots), *spec.shape)
                    outputs.append(np.frombuffer(data, spec.data_type.dtype).reshape(shape))
            self.answers[name] = Answer(
                submission.outcome, submission.queue_wait_ns, submission.batch_size, outputs
            )
            self.partition.release(submission)

        values = np.asarray(rows)
        submission = self.partition.reserve(len(values), model, cls.index, ended)
        for spec, offset in zip(SIGNATURE.inputs, SIGNATURE.input_offsets, strict=True):
            array = np.broadcast_to(values.reshape(-1, *[1] * len(spec.shape)), (len(values), *spec.shape))
            data = array.astype(spec.data_type.dtype).tobytes()
            self.partition.write_input(submission, offset, spec.item_bytes, data)
        now_ns = self.clock.now_ns()
        self.partition.push(
            submission,
            engine=0,
            key=self.stamp.key(model, cls.index, now_ns),
            enqueued_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE if timeout_ns is None else now_ns + timeout_ns,
            exclusive=exclusive,
        )
        return submission

    def run_once(self) -> Batch | None:
        """Runs one batch if the policy lets one go now, and delivers what has ended."""
        step = self.dispatcher.poll()
        batch = step if isinstance(step, Batch) else None
        if batch is not None:
            self.instance.run(batch)
        self.partition.drain()
        return batch

    def run_all(self) -> list[Batch]:
        """Runs batches until none goes."""
        batches = []
        while (batch := self.run_once()) is not None:
            batches.append(batch)
        self.partition.check_integrity()
        return batches
