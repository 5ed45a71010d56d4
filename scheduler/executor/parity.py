"""How far a model's answers are from those of the same model in FP32 on the CPU, and how far they may be.

Used by tests, by the benchmark of a GPU, and at load, where a rearranged model must answer like the plain
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scheduler.executor.runner import Array, DeviceModel
from scheduler.signature import ModelSignature


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed errors of one output.

    Attributes:
        worst: the largest error of an element, over the largest magnitude of the output.
        rms: the root of the mean squared error, over that of the output.
    """

    worst: float
    rms: float


# A unit in the last place is, relative, 2^-24 of FP32, 2^-11 of FP16 and of TF32, 2^-8 of BF16. Errors of
# single roundings average out over a layer and grow over layers and steps. The bundled model, four layers
# and 60 steps, comes to 1.9e-2 (worst) and 1.3e-2 (rms) in BF16 and to an eighth of that in FP16, as the
# units have it, in its weakest output, whose terms nearly cancel; to a third of it in the others. Allowed is
# two to three times the weakest. FP32 and FP32 differ by the order of sums, which other kernels change.
TOLERANCES = {
    "fp32": Tolerance(worst=5e-5, rms=2e-5),
    "tf32": Tolerance(worst=8e-3, rms=4e-3),
    "fp16": Tolerance(worst=8e-3, rms=4e-3),
    "bf16": Tolerance(worst=6e-2, rms=3e-2),
}


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is off.

    Attributes:
        max_abs: the largest error of an element.
        worst: the same over the largest magnitude that the output has in the reference.
        rms: the root of the mean squared error, over that of the output in the reference.
    """

    name: str
    max_abs: float
    worst: float
    rms: float

    def is_within(self, precision: str) -> bool:
        """As close as this precision must come. NaN is not."""
        allowed = TOLERANCES[precision]
        return self.worst <= allowed.worst and self.rms <= allowed.rms


def measure(
    model: DeviceModel, reference: DeviceModel, inputs: Sequence[Array], device: str = "cpu"
) -> list[OutputError]:
    """Runs both on the same rows and compares, output by output.

    Args:
        device: where `model` computes.
        reference: in FP32 on the CPU.
        inputs: one array `[n, *shape]` per input.
    """
    tensors = [torch.from_numpy(array) for array in inputs]
    wanted = [tensor.numpy() for tensor in reference.forward(tensors)]
    got = [tensor.cpu().numpy() for tensor in model.forward([tensor.to(device) for tensor in tensors])]
    return errors(model.signature, wanted, got)


def errors(signature: ModelSignature, wanted: Sequence[Array], got: Sequence[Array]) -> list[OutputError]:
    """What was computed beside what should have been, per output, arrays of the same shapes."""
    return [
        _error(spec.name, right.astype(np.float64), answer.astype(np.float64))
        for spec, right, answer in zip(signature.outputs, wanted, got, strict=True)
    ]


def _error(name: str, wanted: Array, got: Array) -> OutputError:
    off = np.abs(got - wanted)
    return OutputError(
        name,
        max_abs=float(off.max()),
        worst=_over(off.max(), np.abs(wanted).max()),
        rms=_over(np.sqrt(np.square(off).mean()), np.sqrt(np.square(wanted).mean())),
    )


def _over(error: np.floating, magnitude: np.floating) -> float:
    # An output that is all zeros must be all zeros.
    return float(error / magnitude) if magnitude else (0.0 if error == 0 else float("inf"))
