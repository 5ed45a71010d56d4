"""A model repository whose models misbehave on request.

doubler  x → 2x
pair     a FP32 [2], b INT64 [] → total FP64 [], b INT64 []
slow     takes as long as its input says, about 0.1 to 0.2 ms for each 1 of x; one item a batch
touchy   raises where the sum of an item is over 1000
hollow   log x, so NaN where x < 0; batches of 2
"""

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

# Small enough to run full at once: eight slots, four places in the queues of the two lazy classes.
SETTINGS = {
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_SCHEDULER__ADAPTIVE": "false",
    "TICKRING_SERVER__MAX_IN_FLIGHT_PER_STREAM": "4",
    "TICKRING_SCHEDULER__SLOTS_PER_FRONTEND": "8",
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "4",
    "TICKRING_SCHEDULER__CLASSES__HISTORICAL_ANALYSIS__QUEUE_LIMIT": "4",
    "TICKRING_SCHEDULER__CLASSES__BACKGROUND_TASKS__QUEUE_LIMIT": "4",
    # Items whose cost lies in their values make every prediction wrong; what is refused early has tests of
    # its own.
    "TICKRING_SCHEDULER__EARLY_REFUSAL": "false",
    # Longer than any test: what waits for company goes when that comes.
    "TICKRING_SCHEDULER__CLASSES__BACKGROUND_TASKS__MAX_WAIT_MS": "60000",
}
# Name, data type and shape of an input or output, and the bounds of a dynamic one.
TensorRow = tuple[str, str, list[int]] | tuple[str, str, list[int], Mapping[str, list[int]]]


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.double().sum(1) + b, b


class Touchy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x.sum(1) > 1000).any()):
            raise RuntimeError("more than 1000")
        return 2 * x


class Hollow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


X: TensorRow = ("x", "FP32", [4])
Y: TensorRow = ("y", "FP32", [4])
ONE: TensorRow = ("x", "FP32", [1])

_MODELS: dict[str, tuple[type[nn.Module], Sequence[TensorRow], Sequence[TensorRow], str]] = {
    "doubler": (Doubler, [X], [Y], ""),
    "pair": (
        Pair,
        [("a", "FP32", [2]), ("b", "INT64", [])],
        [("total", "FP64", []), ("b", "INT64", [])],
        "",
    ),
    "touchy": (Touchy, [X], [Y], ""),
    "hollow": (Hollow, [ONE], [("y", "FP32", [1])], "[scheduler]\nbuckets = [2]\n"),
}


def build(repository: Path, *names: str) -> Path:
    """Writes these models, or all; returns the repository."""
    for name in names or _MODELS:
        module, inputs, outputs, rest = _MODELS[name]
        add_model(repository, name, archive(module()), inputs, outputs, rest)
    return repository


def archive(module: nn.Module) -> bytes:
    """A TorchScript file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # that torch.export is the future
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def add_model(
    repository: Path,
    name: str,
    file: bytes,
    inputs: Sequence[TensorRow],
    outputs: Sequence[TensorRow],
    rest: str = "",
) -> None:
    """Writes one model in version 1."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(file)
    tensors = [tensor_table("inputs", *spec) for spec in inputs] + [
        tensor_table("outputs", *spec) for spec in outputs
    ]
    (folder.parent / "model.toml").write_text(
        f'name = "{name}"\nformat = "torchscript"\nprecision = "fp32"\n'
        + "".join(tensors)
        + f'[versions.1]\nsha256 = "{hashlib.sha256(file).hexdigest()}"\n'
        + rest
    )


def tensor_table(
    kind: str, name: str, data_type: str, shape: list[int], bounds: Mapping[str, list[int]] | None = None
) -> str:
    """One `[[inputs]]` or `[[outputs]]` of a manifest."""
    table = f'[[{kind}]]\nname = "{name}"\ndata_type = "{data_type}"\nshape = {shape}\n'
    return table + "".join(f"{key} = {sizes}\n" for key, sizes in (bounds or {}).items())
