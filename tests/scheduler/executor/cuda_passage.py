"""One model between slots and outputs, on a fake CUDA device."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.cuda import CudaDevice, map_slab
from scheduler.executor.dynamic_cuda import cuda_instance
from scheduler.executor.instance import Instance
from scheduler.executor.runner import Array, DeviceModel, Runner
from scheduler.partition import Outcome
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.fake_cuda import (
    Compute,
    FakeCuda,
    FakeDeviceModel,
)
from tests.scheduler.executor.passage import Passage, signature

BUCKETS = (1, 2, 4, 8)
TWO_IN_TWO_OUT = signature(
    inputs=(TensorSpec("x", DataType.FP32, (3,)), TensorSpec("scale", DataType.FP64, ())),
    outputs=(TensorSpec("y", DataType.FP32, (3,)), TensorSpec("count", DataType.INT64, (2,))),
)


def scaled(inputs: Sequence[Array]) -> Sequence[Array]:
    x, scale = inputs
    return x * scale[:, None], np.stack([scale, scale + 1], axis=1)


class Notebook:
    """What an instance told."""

    def __init__(self) -> None:
        self.infos: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.infos.append({"event": event, **facts})

    def warning(self, event: str, **facts: Any) -> None:
        self.warnings.append({"event": event, **facts})


class CudaPassage(Passage):
    """A passage over a fake device. `with … as passage: passage.warm(); passage.ask(…)`."""

    def __init__(
        self,
        its_signature: ModelSignature = TWO_IN_TWO_OUT,
        compute: Compute = scaled,
        *,
        graphs: bool = True,
        mapping: bool = True,
        model: Callable[[FakeCuda, ModelSignature, Compute], FakeDeviceModel] = FakeDeviceModel,
    ) -> None:
        self.calls = FakeCuda(advance=lambda ns: self.clock.advance(ns))
        if not mapping:
            self.calls.refuse_mapping = "not today"
        self.graphs = graphs
        self.model = model(self.calls, its_signature, compute)
        self.notes = Notebook()
        super().__init__(self.model, BUCKETS)  # type: ignore[arg-type]  # only its signature is used

    def make_instance(self, runner: Runner, buckets: tuple[int, ...]) -> Instance:
        model: DeviceModel = self.model
        self.limits = BatchLimits(self.dispatcher.limit_batches)
        slab = map_slab(self.calls, self.arena, buckets[-1], self.notes)
        return cuda_instance(
            self.arena,
            self.dispatcher,
            {0: model},
            self.clock,
            lambda *failure: self.failures.append(failure),
            CudaDevice(self.calls, slab, self.graphs, self.limits, self.notes),
            max_batch=buckets[-1],
        )

    def warm(self, buckets: Sequence[int] = BUCKETS) -> dict[int, int]:
        measured = self.instance.warm_up(0, buckets, 3)
        self.latency.seed(0, measured)
        self.dispatcher.warm()
        self.model.launches.clear()
        return measured

    def programs(self) -> dict[int, str]:
        return {
            note["bucket"]: note["program"] for note in self.notes.infos if note["event"] == "bucket is warm"
        }


def rows(*values: float, scale: float = 2.0) -> list[Array]:
    return [np.array([[v, v + 1, v + 2] for v in values]), np.full(len(values), scale)]


def check(answers: Sequence[Any], *asked: Sequence[Array]) -> None:
    for answer, (x, scale) in zip(answers, asked, strict=True):
        assert not isinstance(answer, Outcome), answer
        np.testing.assert_array_equal(answer[0], (x * scale[:, None]).astype(np.float32))
        np.testing.assert_array_equal(answer[1], np.stack([scale, scale + 1], axis=1))
