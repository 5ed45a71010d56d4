"""A model over arrays, for instances on a CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scheduler.executor.runner import Array, DeviceModel
from scheduler.signature import ModelSignature


class TorchRunner:
    """Arrays in and out of a model on the CPU; nothing is copied on the way in or out."""

    def __init__(self, model: DeviceModel) -> None:
        self._model = model
        self._forward = model.forward

    @property
    def signature(self) -> ModelSignature:
        """See `Runner`."""
        return self._model.signature

    @property
    def variant(self) -> str:
        """See `DeviceModel`."""
        return self._model.variant

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `Runner`. The GIL is free while torch computes."""
        # Around all of it: `numpy` is faster in this mode, and the model need not enter it.
        with torch.inference_mode():
            return list(map(Tensor.numpy, self._forward(list(map(torch.from_numpy, inputs)))))
