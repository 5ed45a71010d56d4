"""Which instances an engine gets on its device, and which batches fit it. The GPU is a fake."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor import torch_cuda
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.cuda import CudaInstance
from scheduler.executor.runner import Array, DeviceSettings
from scheduler.latency import LearnedLatency
from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from server import workforce
from server.configuration import load_settings
from server.lineup import Wishes, line_up
from server.repository import load_repository
from server.settings import bundled_repository
from server.sizing import batch_plans, engine_sizes
from server.workforce import Workforce, Workplace, hire, warm_up
from tests.scheduler.executor.fake_cuda import FakeCuda, FakeDeviceModel


class Engine:
    """An engine's parts over the bundled repository, up to where it hires."""

    def __init__(self, **executor: object) -> None:
        overrides = {"executor": executor, "scheduler": {"max_batch_size": 8, "reserved_instances": 1}}
        self.settings = load_settings(overrides, environ={})
        repository = load_repository(Path(bundled_repository()))
        self.lineup = line_up(repository, Wishes(), 1)
        signature = repository.manifests[0].signature(1)
        self.arena = Arena.anonymous(
            Dimensions(1, 1, 16, signature.input_row_bytes, signature.output_row_bytes)
        )
        self.fds = [os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)]
        port = _ring.EnginePort(self.arena.native, 0, self.fds[0], self.fds[1:])
        self.plans = batch_plans(self.settings, self.lineup, 1)
        self.latency = LearnedLatency()
        self.clock = VirtualClock(1000)
        self.dispatcher = Dispatcher(port, self.plans, self.latency, self.clock)

    def hire(self, device: str) -> Workforce:
        sizes = engine_sizes(self.settings, device)
        clock = self.clock
        return hire(
            Workplace(self.settings, sizes, self.lineup, self.arena, self.dispatcher, clock, clock, 8)
        )

    def warm_up(self, hired: Workforce) -> tuple[int, ...]:
        """The buckets that fit."""
        plans = warm_up(hired, self.lineup, self.plans, self.latency)
        self.dispatcher.warm(plans)
        return plans[0].buckets


class Gpu:
    """In the place of torch's: remembers how it was opened, and computes sums."""

    def __init__(self) -> None:
        self.calls = FakeCuda()
        self.opened: list[tuple[str, dict[str, object]]] = []
        self.loaded: list[DeviceSettings] = []
        self.item_bytes = 0

    def open(self, device: str, **options: object) -> FakeCuda:
        self.opened.append((device, options))
        return self.calls

    def load(
        self, _format: str, _file: bytes, signature: ModelSignature, settings: DeviceSettings
    ) -> FakeDeviceModel:
        def sums(inputs: Sequence[Array]) -> Sequence[Array]:
            total = inputs[0].sum(axis=(1, 2))
            return [np.multiply.outer(total, np.ones(spec.shape)) for spec in signature.outputs]

        self.loaded.append(settings)
        model = FakeDeviceModel(self.calls, signature, sums)
        model.item_bytes = self.item_bytes
        return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch_cuda, "TorchCuda", gpu.open)
    monkeypatch.setattr(workforce, "load_model", gpu.load)
    return gpu


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**executor: object) -> Engine:
        engines.append(Engine(**executor))
        return engines[-1]

    yield make
    for each in engines:
        for fd in each.fds:
            os.close(fd)


def test_a_gpu_engine_has_streams_and_one_of_them_is_for_urgent_work(
    gpu: Gpu, engine: Callable[..., Engine]
) -> None:
    its = engine(memory_fraction=0.5, cuda_spin=True, precision="fp16")
    hired = its.hire("cuda:3")
    assert all(isinstance(instance, CudaInstance) for instance in hired.everyone)
    assert (len(hired.instances), len(hired.reserved), len(hired.spares)) == (2, 1, 0)
    assert sorted(stream.urgent for stream in gpu.calls.streams) == [False, False, True]
    assert gpu.opened == [("cuda:3", {"memory_fraction": 0.5, "spin": True})]
    assert gpu.loaded == [DeviceSettings(device="cuda:3", threads=1, precision="fp16")]
    assert hired.gpu is not None
    assert hired.gpu.uuid == gpu.calls.uuid


def test_an_open_precision_is_fp32_on_a_gpu(gpu: Gpu, engine: Callable[..., Engine]) -> None:
    """Nothing is measured there."""
    engine(precision="auto").hire("cuda:0")
    assert gpu.loaded == [DeviceSettings(device="cuda:0", threads=1, precision="fp32")]


def test_graphs_can_be_switched_off(gpu: Gpu, engine: Callable[..., Engine]) -> None:
    its = engine(cuda_graphs=False)
    its.warm_up(its.hire("cuda:0"))
    assert gpu.calls.graphs == []


def test_batches_that_do_not_fit_every_stream_are_not_formed(gpu: Gpu, engine: Callable[..., Engine]) -> None:
    """Nor is one of that size predicted; what fits is served."""
    gpu.item_bytes = 1 << 20
    its = engine()
    hired = its.hire("cuda:0")
    gpu.calls.free = 7 << 20
    assert its.warm_up(hired) == (1, 2, 4)
    assert [row.bucket for row in its.latency.table(0)] == [1, 2, 4]

    partition = Partition(its.arena, 0, its.fds[1], its.fds[:1])
    signature = its.lineup.manifests[0].signature(1)
    ended: list[Any] = []

    def on_end(submission: Submission) -> None:
        spec = signature.outputs[0]
        row = partition.output(submission, signature.output_offsets[0], spec.item_bytes)
        ended.append(np.frombuffer(row, spec.data_type.dtype)[0])
        partition.release(submission)

    for value in range(6):
        submission = partition.reserve(1, 0, 0, on_end)
        window = np.full(signature.inputs[0].shape, value, np.float32)
        partition.write_input(submission, 0, signature.inputs[0].item_bytes, window.tobytes())
        now_ns = its.clock.now_ns()
        partition.push(
            submission,
            engine=0,
            key=now_ns,
            enqueued_ns=now_ns,
            deadline_ns=_ring.NO_DEADLINE,
            exclusive=False,
        )
    sizes = []
    while isinstance(batch := its.dispatcher.poll(), Batch):
        sizes.append(len(batch.slots))
        hired.everyone[len(sizes) % 3].run(batch)
        partition.drain()
    assert sizes == [4, 2]
    assert ended == [value * 3000 for value in range(6)]


def test_a_cpu_engine_needs_no_gpu(engine: Callable[..., Engine]) -> None:
    its = engine(instances=3)
    hired = its.hire("cpu")
    assert all(isinstance(instance, CpuInstance) for instance in hired.everyone)
    assert (len(hired.instances), len(hired.reserved), hired.gpu) == (2, 1, None)
    assert its.warm_up(hired) == (1, 2, 4, 8)
