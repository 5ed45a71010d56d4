"""The model of `bench.simulate check`: some milliseconds a batch, and cheaper per row in larger ones."""

import hashlib
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

NAME = "some_ms"
INPUT, ROW = "x", 4
# One step is a product of a square matrix of this size with 16 columns per row, and a tanh.
_SIZE = 64
_CALIBRATION_STEPS = 200
_CALIBRATION_ROUNDS = 50


class Steps(nn.Module):
    """FP32 [n, 4] → FP32 [n, 4], in so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        generator = torch.Generator().manual_seed(0)
        # Wide enough that tanh never settles: numbers near zero would be slower than others.
        weight = torch.randn(_SIZE, _SIZE, generator=generator) * (1.5 / _SIZE**0.5)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        state = x.t().repeat(16, 16)  # [64, 16 n]
        for _ in range(self.steps):
            state = torch.tanh(torch.mm(self.weight, state))
        return x + state.mean()


def build(repository: Path, buckets: Sequence[int], batch_ms: float) -> None:
    """Writes the model, calibrated so that its largest batch takes about `batch_ms` on one thread here."""
    file = repository / NAME / "1" / "model.pt"
    file.parent.mkdir(parents=True)
    with warnings.catch_warnings():  # that torch.export is the future
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Steps(_calibrated_steps(buckets[-1], batch_ms))), str(file))
    tensor = f'data_type = "FP32"\nshape = [{ROW}]\n'
    (repository / NAME / "model.toml").write_text(
        f'name = "{NAME}"\nformat = "torchscript"\nprecision = "fp32"\n'
        f'[[inputs]]\nname = "{INPUT}"\n{tensor}[[outputs]]\nname = "y"\n{tensor}'
        f'[versions.1]\nsha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"\n'
        f"[scheduler]\nbuckets = {list(buckets)}\n"
    )


def _calibrated_steps(rows: int, batch_ms: float) -> int:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = torch.jit.script(Steps(_CALIBRATION_STEPS))
    x = torch.ones(rows, ROW)
    took_ms = []
    with torch.inference_mode():
        for _ in range(_CALIBRATION_ROUNDS):
            started_s = time.perf_counter()
            model(x)
            took_ms.append((time.perf_counter() - started_s) * 1e3)
    torch.set_num_threads(threads)
    return max(1, round(batch_ms / statistics.median(took_ms) * _CALIBRATION_STEPS))
