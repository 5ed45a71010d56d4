"""TorchScript on the CPU."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scheduler.executor.lstm_packing import pack
from scheduler.executor.runner import Array, DeviceSettings, ModelUnusable
from scheduler.signature import ModelSignature


class TorchScriptRunner:
    """A TorchScript module whose outputs are a tensor, a tuple in the manifest's order, or a dict by name."""

    def __init__(self, module: torch.jit.ScriptModule, signature: ModelSignature) -> None:
        self._module = module
        self._signature = signature
        self._output_names = [spec.name for spec in signature.outputs]

    @classmethod
    def load(cls, file: bytes, signature: ModelSignature, settings: DeviceSettings) -> "TorchScriptRunner":
        """Loads the bytes of a `.pt` file.

        Raises:
            ModelUnusable: it is no TorchScript archive, or belongs to another version of torch.
        """
        torch.set_num_threads(settings.threads)
        try:
            # Not frozen, nor optimised for inference: neither was faster for the bundled model.
            module = torch.jit.load(io.BytesIO(file), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise ModelUnusable(f"torch cannot load the file of {signature.name}: {first_line}") from error
        module = module.eval()
        shapes = [
            (spec.shape, torch.from_numpy(np.empty(0, spec.data_type.dtype)).dtype)
            for spec in signature.inputs
        ]
        return cls(pack(module, shapes) or module, signature)

    @property
    def signature(self) -> ModelSignature:
        """See `Runner`."""
        return self._signature

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `Runner`. The GIL is free while torch computes."""
        with torch.inference_mode():
            answer = self._module(*[torch.from_numpy(array) for array in inputs])
        return [tensor.contiguous().numpy() for tensor in self._in_order(answer)]

    def _in_order(self, answer: Any) -> Sequence[torch.Tensor]:
        if isinstance(answer, torch.Tensor):
            return (answer,)
        if isinstance(answer, dict):
            return [answer[name] for name in self._output_names]
        return answer  # type: ignore[no-any-return]  # a tuple; its parts are checked at warm-up
