"""A torch module as instances use it: tensors as the signature promises, the model's precision inside."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scheduler.executor.error_text import last_line
from scheduler.executor.precision import TF32, narrow_dtype
from scheduler.executor.runner import DeviceSettings, ModelUnusable
from scheduler.signature import ModelSignature, TensorSpec


class TorchModel:
    """A module whose outputs are a tensor, a tuple in the manifest's order, or a dict by name."""

    def __init__(
        self, module: Callable[..., Any], signature: ModelSignature, settings: DeviceSettings, variant: str
    ) -> None:
        self._module = module
        self._signature = signature
        self._variant = variant
        self._output_names = [spec.name for spec in signature.outputs]
        self._output_dtypes = [tensor_dtype(spec) for spec in signature.outputs]
        self._narrow = narrow_dtype(settings.precision)

    @property
    def signature(self) -> ModelSignature:
        """See `DeviceModel`."""
        return self._signature

    @property
    def variant(self) -> str:
        """See `DeviceModel`."""
        return self._variant

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `DeviceModel`. The GIL is free while torch computes or enqueues."""
        if torch.is_inference_mode_enabled():
            return self._compute(inputs)
        with torch.inference_mode():
            return self._compute(inputs)

    def _compute(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self._narrow is None:
            return list(map(Tensor.contiguous, self._in_order(self._module(*inputs))))
        outputs = self._in_order(self._module(*[_cast(tensor, self._narrow) for tensor in inputs]))
        if len(outputs) != len(self._output_dtypes):
            raise ValueError(
                f"{len(outputs)} outputs were returned, the manifest names {len(self._output_dtypes)}"
            )
        return [
            self._widened(tensor, dtype).contiguous()
            for tensor, dtype in zip(outputs, self._output_dtypes, strict=True)
        ]

    def _in_order(self, answer: Any) -> Sequence[Tensor]:
        if isinstance(answer, Tensor):
            return (answer,)
        if isinstance(answer, dict):
            return [answer[name] for name in self._output_names]
        return answer  # type: ignore[no-any-return]  # a tuple; its parts are checked at warm-up

    def _widened(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # Only what is narrow because of the precision: any other mismatch is an error of the manifest.
        return _cast(tensor, dtype) if tensor.dtype == self._narrow else tensor


class GpuModel(TorchModel):
    """The same on a GPU, where FP32 has two meanings."""

    def __init__(
        self, module: Callable[..., Any], signature: ModelSignature, settings: DeviceSettings, variant: str
    ) -> None:
        super().__init__(module, signature, settings, variant)
        self._tf32 = settings.precision == "tf32"

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See `DeviceModel`."""
        with TF32.set_to(self._tf32):
            return super().forward(inputs)


def model_of(
    module: Callable[..., Any], signature: ModelSignature, settings: DeviceSettings, variant: str
) -> TorchModel:
    """A module, which is on its device and in its dtype already, as a model."""
    kind = TorchModel if settings.device == "cpu" else GpuModel
    return kind(module, signature, settings, variant)


def tensor_dtype(spec: TensorSpec) -> torch.dtype:
    """torch's word for the data type."""
    return torch.from_numpy(np.empty(0, spec.data_type.dtype)).dtype


def input_layouts(
    signature: ModelSignature, settings: DeviceSettings
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Per-item shape, the largest, and dtype of each input as the module itself gets it."""
    narrow = narrow_dtype(settings.precision)
    layouts = []
    for spec in signature.inputs:
        dtype = tensor_dtype(spec)
        layouts.append((spec.largest, narrow if narrow is not None and dtype.is_floating_point else dtype))
    return layouts


def open_device(settings: DeviceSettings) -> torch.device:
    """The device, made ready for models: compute threads of a CPU, autotuning of a GPU.

    Raises:
        ModelUnusable: no such device here.
    """
    kind, _, index = settings.device.partition(":")
    if kind == "cpu":
        torch.set_num_threads(settings.threads)
        return torch.device("cpu")
    if kind != "cuda" or not index.isdecimal():
        raise ModelUnusable(f"device {settings.device} is unknown, allowed are cpu and cuda:N")
    count = torch.cuda.device_count()
    if int(index) >= count:
        raise ModelUnusable(f"device {settings.device} is not there: torch sees {count} GPUs")
    # cuDNN tries its algorithms when it first meets a shape, which warm-up does, and keeps the fastest.
    torch.backends.cudnn.benchmark = True
    return torch.device(settings.device)


def check_precision(model: TorchModel, settings: DeviceSettings, device: torch.device) -> None:
    """Runs one row of zeros: not every operator exists in every precision on every device.

    Raises:
        ModelUnusable: it names the model, the precision and what torch says.
    """
    zeros = [
        torch.zeros((1, *spec.largest), dtype=tensor_dtype(spec), device=device)
        for spec in model.signature.inputs
    ]
    try:
        model.forward(zeros)
    except Exception as error:  # the module's own, of any kind
        raise ModelUnusable(
            f"{model.signature.name} cannot compute in {settings.precision} on {settings.device}: "
            f"{last_line(error)}"
        ) from error


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Between floating point types; anything else stays what it is."""
    return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor
