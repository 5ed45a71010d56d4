"""What goes into a module and what comes out of it, in every precision."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from scheduler.executor.runner import DeviceSettings, ModelUnusable
from scheduler.executor.torch_model import TorchModel, check_precision, model_of, open_device
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import signature

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Settings that are the whole process's."""
    threads, backends = torch.get_num_threads(), torch.backends
    products, others = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    autotuning = backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    backends.cudnn.benchmark = autotuning
    backends.cuda.matmul.allow_tf32 = products
    backends.cudnn.allow_tf32 = others


def specs(**types: DataType) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of two values to a row."""
    return tuple(TensorSpec(name, data_type, (2,)) for name, data_type in types.items())


def model(
    module: Callable[..., Any],
    precision: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    device: str = "cpu",
) -> TorchModel:
    """A function of tensors as a model."""
    settings = DeviceSettings(device=device, precision=precision)
    return model_of(module, signature(inputs=inputs, outputs=outputs), settings, "plain")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_floating_point_is_converted_on_the_way_in_and_out(precision: str) -> None:
    """Whatever the caller's type; numbers that are no floating point stay what they are."""
    seen = []

    def module(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.extend([a.dtype, b.dtype, c.dtype, d.dtype])
        return a + b, c + 1, d

    inputs = specs(a=DataType.FP32, b=DataType.FP64, c=DataType.INT64, d=DataType.BOOL)
    outputs = specs(x=DataType.FP64, y=DataType.INT64, z=DataType.BOOL)
    answer = model(module, precision, inputs, outputs).forward(
        [
            torch.tensor([[1.0, 2.0]]),
            torch.tensor([[0.5, 0.25]], dtype=torch.float64),
            torch.tensor([[2**53 + 1, 7]]),
            torch.tensor([[True, False]]),
        ]
    )
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert seen == [narrow, narrow, torch.int64, torch.bool]
    assert [tensor.dtype for tensor in answer] == [torch.float64, torch.int64, torch.bool]
    assert [tensor.tolist() for tensor in answer] == [[[1.5, 2.25]], [[2**53 + 2, 8]], [[True, False]]]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_full_precision_converts_nothing(precision: str) -> None:
    """The module gets what the caller sent, and what it returns in another type is not hidden."""
    answer = model(
        lambda a, b: (a, b.half()),
        precision,
        specs(a=DataType.FP64, b=DataType.FP32),
        specs(x=DataType.FP64, y=DataType.FP32),
    ).forward([torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2)])
    assert [tensor.dtype for tensor in answer] == [torch.float64, torch.float16]


def test_a_type_that_the_precision_does_not_explain_is_not_hidden() -> None:
    """FP64 out of a BF16 model is what the manifest has to say."""
    (answer,) = model(lambda a: a.double(), "bf16", specs(a=DataType.FP32), specs(x=DataType.FP32)).forward(
        [torch.zeros(1, 2)]
    )
    assert answer.dtype == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_are_contiguous(precision: str) -> None:
    """Whatever the module returns."""
    (answer,) = model(
        lambda a: a.t().contiguous().t(), precision, specs(a=DataType.FP32), specs(x=DataType.FP32)
    ).forward([torch.arange(6.0).reshape(3, 2)])
    assert answer.is_contiguous()
    assert answer.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_dict_is_asked_by_name(precision: str) -> None:
    """In the manifest's order, for no more than it names."""
    answer = model(
        lambda a: {"y": a + 1, "unasked": a, "x": a},
        precision,
        specs(a=DataType.FP32),
        specs(x=DataType.FP32, y=DataType.FP32),
    ).forward([torch.zeros(1, 2)])
    assert [tensor.tolist() for tensor in answer] == [[[0, 0]], [[1, 1]]]


@pytest.mark.parametrize("count", [1, 3])
def test_a_narrow_model_with_another_number_of_outputs_raises(count: int) -> None:
    """None is lost on the way through the conversion."""
    two = specs(x=DataType.FP32, y=DataType.FP32)
    with pytest.raises(ValueError, match=f"^{count} outputs were returned, the manifest names 2$"):
        model(lambda a: (a,) * count, "bf16", specs(a=DataType.FP32), two).forward([torch.zeros(1, 2)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_off(precision: str) -> None:
    """Also for a caller that has not turned them off."""
    weight = torch.ones(2, requires_grad=True, dtype=torch.float32)
    answer = model(
        lambda a: a.float() * weight, precision, specs(a=DataType.FP32), specs(x=DataType.FP32)
    ).forward([torch.zeros(1, 2)])
    assert [tensor.is_inference() for tensor in answer] == [True]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_gpu_model_computes_with_its_own_flags(precision: str) -> None:
    """Whatever another model has left behind."""
    seen = []

    def module(a: Tensor) -> Tensor:
        seen.extend([torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32])
        return a

    x = specs(x=DataType.FP32)
    its_own = model(module, precision, x, x, device="cuda:0")
    model(module, "fp32" if precision == "tf32" else "tf32", x, x, device="cuda:0").forward(
        [torch.zeros(1, 2)]
    )
    seen.clear()
    its_own.forward([torch.zeros(1, 2)])
    assert seen == [precision == "tf32"] * 2


def test_a_cpu_model_leaves_the_flags_alone() -> None:
    """They cost a lock, and mean nothing to it."""
    seen = []

    def module(a: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return a

    x = specs(x=DataType.FP32)
    torch.backends.cuda.matmul.allow_tf32 = False
    model(module, "tf32", x, x).forward([torch.zeros(1, 2)])
    assert seen == [False]


def test_a_precision_that_does_not_run_is_told_at_load() -> None:
    """With the model, the precision, the device and what torch said last."""

    def module(a: Tensor) -> Tensor:
        raise RuntimeError("a trace\nof several lines\n\"lgamma\" not implemented for 'Half'\n")

    x = specs(x=DataType.FP32)
    settings = DeviceSettings(precision="fp16")
    with pytest.raises(ModelUnusable) as refused:
        check_precision(model(module, "fp16", x, x), settings, CPU)
    assert str(refused.value) == "m cannot compute in fp16 on cpu: \"lgamma\" not implemented for 'Half'"


def test_threads_of_a_cpu() -> None:
    """As the settings say."""
    for count in (2, 1):
        assert open_device(DeviceSettings(threads=count)) == CPU
        assert torch.get_num_threads() == count


def test_a_gpu_tries_cudnns_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps the fastest; the choice is made in warm-up."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torch.backends.cudnn.benchmark = False
    assert open_device(DeviceSettings(device="cuda:1")) == torch.device("cuda:1")
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:2", "device cuda:2 is not there: torch sees 2 GPUs"),
        ("cuda", "device cuda is unknown, allowed are cpu and cuda:N"),
        ("tpu:0", "device tpu:0 is unknown, allowed are cpu and cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words of ours."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelUnusable) as refused:
        open_device(DeviceSettings(device=device))
    assert str(refused.value) == message
