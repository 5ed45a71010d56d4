"""What a loaded model version looks like to an instance, and how a file becomes one.

A third backend is one new file with a `Runner`, and one line in `_load`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from scheduler.signature import ModelSignature

Array = npt.NDArray[Any]


class ModelUnusable(Exception):
    """A model file that cannot be served: it does not load, or does not do what its manifest says."""


class DeviceLost(Exception):
    """The device is gone, or no call can succeed on it any more: no row is to blame, the engine must end."""


class Runner(Protocol):
    """A loaded model version. Shared by the instances of a device, so `run` is called concurrently."""

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


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How the runners of an engine compute.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        threads: compute threads of one instance, at least 1.
    """

    device: str = "cpu"
    threads: int = 1


def load_runner(
    model_format: str, file: bytes, signature: ModelSignature, settings: DeviceSettings
) -> Runner:
    """Loads a verified model file.

    Raises:
        ModelUnusable: unknown format or device, or the backend refuses the file.
    """
    if settings.device != "cpu":
        raise ModelUnusable(f"device {settings.device} is not supported yet, allowed is cpu")
    if model_format != "torchscript":
        raise ModelUnusable(f"format {model_format} is not supported yet, allowed is torchscript")
    # Here and not above: importing a backend takes a second, and only its user should pay.
    from scheduler.executor.torchscript import TorchScriptRunner

    return TorchScriptRunner.load(file, signature, settings)
