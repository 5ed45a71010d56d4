"""What a loaded model version looks like to an instance, and how a file becomes one.

A third backend is one new file with a `load` like those of the others, and one line in `BACKENDS`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from scheduler.signature import ModelSignature

if TYPE_CHECKING:  # importing torch takes a second, and only its user should pay
    from torch import Tensor

Array = npt.NDArray[Any]

# Model format to the module whose `load` reads it. Imported when the first file of the format is loaded.
BACKENDS = {
    "torchscript": "scheduler.executor.torchscript",
    "exported_program": "scheduler.executor.exported",
}


class ModelUnusable(Exception):
    """A model file that cannot be served: it does not load, or does not do what its manifest says."""


class DeviceLost(Exception):
    """The device is gone, or no call can succeed on it any more: no row is to blame, the engine must end."""


class Runner(Protocol):
    """A loaded model version over arrays. Shared by the instances of a CPU: `run` is called concurrently."""

    @property
    def signature(self) -> ModelSignature:
        """Names, dtypes and per-item shapes of inputs and outputs, in the order `run` uses."""
        ...

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Computes one batch.

        Args:
            inputs: one C-contiguous array `[bucket, *shape]` per input.

        Returns:
            One C-contiguous array `[bucket, *shape]` per output. Row i depends on row i only.

        Raises:
            DeviceLost: it is the device's fault, not that of the rows. Ends the engine.
            Exception: whatever the model raises; it fails the rows to blame, not the engine.
        """
        ...


class DeviceModel(Protocol):
    """A loaded model version over tensors on its device. Shared by the device's instances."""

    @property
    def signature(self) -> ModelSignature:
        """Names, dtypes and per-item shapes of inputs and outputs, in the order `forward` uses."""
        ...

    @property
    def variant(self) -> str:
        """Which form of the model was found the fastest when it was loaded, for the log."""
        ...

    def forward(self, inputs: Sequence["Tensor"]) -> Sequence["Tensor"]:
        """Enqueues one batch on the current stream, without waiting for it.

        Memory comes from torch's allocator only, so that a CUDA graph can capture the call.

        Args:
            inputs: one contiguous tensor `[bucket, *shape]` per input, on the device, in the dtypes of the
                signature.

        Returns:
            One contiguous tensor `[bucket, *shape]` per output, likewise. What the precision of the model
            asks for is converted in between. Row i depends on row i only.

        Raises:
            Exception: whatever the model raises, or the device.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How the models of an engine compute.

    Attributes:
        device: "cpu" or "cuda:N".
        threads: compute threads of one instance on a CPU, at least 1.
        precision: "fp32", "tf32", "fp16" or "bf16": what weights, and inputs in floating point, are
            converted to. A CPU has no TF32 and computes in FP32.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"


class Load(Protocol):
    """What the module of a format offers."""

    def __call__(self, file: bytes, signature: ModelSignature, settings: DeviceSettings) -> DeviceModel:
        """Loads a model file onto the device; raises ModelUnusable."""
        ...


def load_model(
    model_format: str, file: bytes, signature: ModelSignature, settings: DeviceSettings
) -> DeviceModel:
    """Loads a verified model file onto the device.

    Raises:
        ModelUnusable: unknown format or device, the backend refuses the file, or the model cannot compute
            in the precision on this device.
    """
    if model_format not in BACKENDS:
        raise ModelUnusable(f"format {model_format} is unknown, allowed are {', '.join(BACKENDS)}")
    load: Load = importlib.import_module(BACKENDS[model_format]).load
    return load(file, signature, settings)


def load_runner(
    model_format: str, file: bytes, signature: ModelSignature, settings: DeviceSettings
) -> Runner:
    """The same model over arrays, for instances on a CPU.

    Raises:
        ModelUnusable: see `load_model`; or the device is no CPU.
    """
    if settings.device != "cpu":
        raise ModelUnusable(f"a runner over arrays computes on the cpu, not on {settings.device}")
    model = load_model(model_format, file, signature, settings)
    from scheduler.executor.torch_runner import TorchRunner

    return TorchRunner(model)
