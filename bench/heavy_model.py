"""A model whose cost is known: the same for every row, about 2 ms on one thread of this machine.

Client and server share the machine here, so a server that is to be offered five times what it can do
must be able to do little: this one does about 500 rows per second. Rows are computed one after the other:
a batch of n takes n times as long, and no batching gain blurs what capacity is.
"""

import hashlib
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

NAME = "heavy"
INPUT = "x"
ROW = 4
BUCKETS = (1, 2, 4, 8)
ROW_MS = 2.0

# One step is a product of two square matrices of this size and a tanh of the result: about 20 us.
_SIZE = 64
_CALIBRATION_STEPS = 200
_CALIBRATION_ROUNDS = 101  # the first ones compile, and wake the core


class Heavy(nn.Module):
    """FP32 [n, 4] → FP32 [n, 4], `steps` steps for each row."""

    weight: Tensor
    state: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        generator = torch.Generator().manual_seed(0)
        # Wide enough that tanh never settles: numbers near zero would be slower than others.
        self.register_buffer("weight", torch.randn(_SIZE, _SIZE, generator=generator) * (1.5 / _SIZE**0.5))
        self.register_buffer("state", torch.randn(_SIZE, _SIZE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for row in range(x.shape[0]):
            state = self.state + x[row].sum()
            for _ in range(self.steps):
                state = torch.tanh(torch.mm(self.weight, state))
            rows.append(state[0, :4])
        return torch.stack(rows)


def build(repository: Path, row_ms: float = ROW_MS) -> Path:
    """Writes the model, calibrated to `row_ms` per row; returns the repository."""
    file = repository / NAME / "1" / "model.pt"
    file.parent.mkdir(parents=True)
    with warnings.catch_warnings():  # that torch.export is the future
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Heavy(calibrated_steps(row_ms))), str(file))
    tensor = f'data_type = "FP32"\nshape = [{ROW}]\n'
    (file.parent.parent / "model.toml").write_text(
        f'name = "{NAME}"\nformat = "torchscript"\nprecision = "fp32"\n'
        f'[[inputs]]\nname = "{INPUT}"\n{tensor}[[outputs]]\nname = "y"\n{tensor}'
        f'[versions.1]\nsha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"\n'
        f"[scheduler]\nbuckets = {list(BUCKETS)}\n"
    )
    return repository


def calibrated_steps(row_ms: float) -> int:
    """How many steps take `row_ms` here, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = torch.jit.script(Heavy(_CALIBRATION_STEPS))
    x = torch.zeros(1, ROW)
    took_ms = []
    with torch.inference_mode():
        for _ in range(_CALIBRATION_ROUNDS):
            started = time.perf_counter()
            model(x)
            took_ms.append((time.perf_counter() - started) * 1e3)
    torch.set_num_threads(threads)
    # What others take of the core only ever makes a round longer: the lower decile is the model's own.
    return max(1, round(row_ms / statistics.quantiles(took_ms, n=10)[0] * _CALIBRATION_STEPS))
