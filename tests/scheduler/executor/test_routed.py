"""Models of fixed and of dynamic shapes on one device."""

from collections.abc import Sequence

import numpy as np
import pytest

from scheduler.executor.cpu import CpuInstance
from scheduler.executor.cuda import CudaDevice, CudaInstance
from scheduler.executor.dynamic_cpu import DynamicCpuInstance, cpu_instance
from scheduler.executor.dynamic_cuda import DynamicCudaInstance, cuda_instance
from scheduler.executor.instance import Instance
from scheduler.executor.routed import Routed
from scheduler.executor.runner import Array
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.cuda_passage import CudaPassage
from tests.scheduler.executor.fake_cuda import FakeDeviceModel
from tests.scheduler.executor.passage import Function, Passage, signature

FIXED = signature(outputs=(TensorSpec("y", DataType.FP32, (2,)),))
DYNAMIC = signature(
    inputs=(TensorSpec("x", DataType.FP32, (-1,), (9,), (1,)),),
    outputs=(TensorSpec("y", DataType.FP32, (-1,), (9,)),),
)


def double(inputs: Sequence[Array]) -> Sequence[Array]:
    return [2 * inputs[0]]


@pytest.mark.parametrize(
    ("models", "kind"),
    [
        ({2: FIXED, 5: FIXED}, CpuInstance),
        ({2: DYNAMIC}, DynamicCpuInstance),
        ({2: DYNAMIC, 5: FIXED}, Routed),
        ({}, CpuInstance),
    ],
)
def test_one_kind_of_model_needs_one_instance(
    models: dict[int, ModelSignature], kind: type[Instance]
) -> None:
    """On a CPU and on a GPU; of two kinds, each model has the instance of its own."""
    on_gpu = {
        CpuInstance: CudaInstance, DynamicCpuInstance: DynamicCudaInstance, Routed: Routed
    }[kind]  # fmt: skip
    with Passage(Function(DYNAMIC, double)) as passage, CudaPassage(DYNAMIC, double) as cuda:
        runners = {place: Function(its, double) for place, its in models.items()}
        instance = cpu_instance(
            passage.arena, passage.dispatcher, runners, 4, passage.clock, lambda *failure: None
        )
        assert type(instance) is kind
        device_models = {place: FakeDeviceModel(cuda.calls, its, double) for place, its in models.items()}
        device = CudaDevice(cuda.calls, None, False, cuda.limits, cuda.notes)
        instances: list[Instance] = [
            instance,
            cuda_instance(
                cuda.arena,
                cuda.dispatcher,
                device_models,
                cuda.clock,
                lambda *failure: None,
                device,
                max_batch=4,
                urgent=True,
            ),
        ]
        assert type(instances[1]) is on_gpu
        for each in instances:
            for place in models:
                assert each.warm_up(place, (1, 2, 4), 2).keys() == {1, 2, 4}
            each.settle()


def test_batches_go_to_the_instance_of_their_model() -> None:
    """The dynamic one among two answers as it does alone."""
    with Passage(Function(DYNAMIC, double)) as passage:
        runners = {0: Function(DYNAMIC, double), 7: Function(FIXED, double)}
        passage.instance = cpu_instance(
            passage.arena, passage.dispatcher, runners, 8, passage.clock, lambda *failure: None
        )
        passage.latency.seed(0, passage.instance.warm_up(0, (1, 2, 4, 8), 1))
        asked = [np.ones((2, length), np.float32) for length in (3, 9, 1)]
        for x, answer in zip(asked, passage.ask(*[[x] for x in asked]), strict=True):
            assert isinstance(answer, list)
            np.testing.assert_array_equal(answer[0], 2 * x)
