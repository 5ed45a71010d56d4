"""The forms that a TorchScript model can take on a GPU, and which of them is the fastest.

Freezing turns weights into constants and folds what can be folded, a batch normalisation into the
convolution before it for one. `optimize_for_inference` goes on from there with operators of cuDNN that do
two steps in one. Which of it helps depends on the model, so it is measured, and what does not answer like the
plain module is dropped. A CPU tries none of it: of the bundled model neither was faster there, and the
measurement would make every start longer and its outcome depend on what else the machine does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import geometric_mean, median
from typing import Any

import torch
from torch import Tensor

from scheduler.executor.parity import errors
from scheduler.executor.torch_model import TorchModel, tensor_dtype
from scheduler.signature import ModelSignature

TRIED_ROWS = (1, 3, 32)
# TorchScript compiles in the first two calls of a shape; cuDNN tries its algorithms in the first.
WARM_UP_CALLS = 4
TIMED_CALLS = 20
# A gain below this is noise, and the plain module is the one with nothing to explain.
MIN_GAIN = 0.03

Seconds = Callable[[TorchModel, Sequence[Tensor]], float]


def rearranged(module: torch.jit.ScriptModule) -> Iterator[tuple[str, Any]]:
    """The other forms of a module, which is on its device, in its dtype and in eval mode already."""
    for name, rearrange in (("frozen", torch.jit.freeze), ("optimized", _optimized)):
        try:
            form = rearrange(module)
        except RuntimeError:  # not every module can be frozen
            continue
        yield name, form


def _optimized(module: torch.jit.ScriptModule) -> Any:
    # Changes what it is given, so it gets a frozen module of its own.
    return torch.jit.optimize_for_inference(torch.jit.freeze(module))


def fastest(
    plain: TorchModel,
    others: Sequence[TorchModel],
    precision: str,
    device: torch.device,
    seconds: Seconds,
) -> TorchModel:
    """The fastest of these: `plain`, unless one gains more than `MIN_GAIN`, averaged over `TRIED_ROWS`.

    One that raises, or differs from `plain` by more than the precision allows, is out.

    Args:
        seconds: how long a model takes for these inputs.
    """
    batches = [_sample(plain.signature, rows, device) for rows in TRIED_ROWS]
    try:
        wanted = [plain.forward(batch) for batch in batches]
        times = [seconds(plain, batch) for batch in batches]
    except Exception:  # the module's own, of any kind: warm-up will tell
        return plain
    best, best_ratio = plain, 1.0 - MIN_GAIN
    for other in others:
        try:
            same = all(
                _agree(plain.signature, right, other.forward(batch), precision)
                for right, batch in zip(wanted, batches, strict=True)
            )
            if not same:
                continue
            ratio = geometric_mean(
                seconds(other, batch) / before for batch, before in zip(batches, times, strict=True)
            )
        except Exception:  # as above: of this form only
            continue
        if ratio < best_ratio:
            best, best_ratio = other, ratio
    return best


def seconds_on_gpu(model: TorchModel, inputs: Sequence[Tensor]) -> float:
    """The median time of a call, from its start to the end of its kernels."""
    device = inputs[0].device
    times = []
    for call in range(WARM_UP_CALLS + TIMED_CALLS):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        model.forward(inputs)
        torch.cuda.synchronize(device)
        if call >= WARM_UP_CALLS:
            times.append(time.perf_counter() - started)
    return median(times)


def _sample(signature: ModelSignature, rows: int, device: torch.device) -> list[Tensor]:
    """Noise from 0 to 1, of the largest shapes.

    Where a model takes numbers for indexes, they are all 0 and none is out of range.
    """
    generator = torch.Generator().manual_seed(rows)
    inputs = []
    for spec in signature.inputs:
        noise = torch.rand((rows, *spec.largest), generator=generator)
        inputs.append(noise.to(tensor_dtype(spec)).to(device))
    return inputs


def _agree(
    signature: ModelSignature, wanted: Sequence[Tensor], got: Sequence[Tensor], precision: str
) -> bool:
    found = errors(signature, [t.cpu().numpy() for t in wanted], [t.cpu().numpy() for t in got])
    return all(error.is_within(precision) for error in found)
