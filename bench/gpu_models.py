"""The models that are measured, as files and signatures: the bundled one, and LSTMs of three sizes.

The shapes A, B and C are those that others publish figures for. These weights are random, nobody has audited
anything, and a whole window is computed for every inference: nothing here is a result of their benchmark.
torch's LSTM has two vectors of biases in each layer where one would do, so it has a few parameters more.
"""

import functools
import io
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scheduler.executor.runner import DeviceModel, DeviceSettings, load_model
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.repository import load_repository, read_verified
from server.settings import bundled_repository

POISON = 13.0
BUNDLED = "sp500_direction"


@dataclass(frozen=True)
class LstmShape:
    """Of one window: `steps` of `features`, through `layers` of `units`."""

    steps: int
    features: int
    layers: int
    units: int

    def __str__(self) -> str:
        return f"{self.steps} x {self.features}, {self.layers} x {self.units} units"


LSTMS = {
    "lstm_a": LstmShape(steps=50, features=100, layers=2, units=100),
    "lstm_b": LstmShape(steps=100, features=250, layers=3, units=200),
    "lstm_c": LstmShape(steps=100, features=500, layers=4, units=1000),
}
NAMES = (BUNDLED, *LSTMS)


@dataclass(frozen=True)
class ModelFile:
    """What a server would find in its repository."""

    name: str
    description: str
    model_format: str
    file: bytes
    signature: ModelSignature

    def load(self, device: str, precision: str) -> DeviceModel:
        """Onto "cpu" or "cuda:N". Raises ModelUnusable."""
        return load_model(self.model_format, self.file, self.signature, DeviceSettings(device, 1, precision))


class WindowLstm(nn.Module):
    """FP32 [n, steps, features] to FP32 [n, 1]: an LSTM, and a line through its last step."""

    def __init__(self, shape: LstmShape) -> None:
        super().__init__()
        self.lstm = nn.LSTM(shape.features, shape.units, shape.layers, batch_first=True)
        self.head = nn.Linear(shape.units, 1)

    def forward(self, window: Tensor) -> Tensor:
        steps, _ = self.lstm(window)
        answer: Tensor = self.head(steps[:, -1])
        return answer


class Touchy(nn.Module):
    """Raises when a row of the batch starts with `POISON`: it has to look, so it cannot be captured."""

    def forward(self, window: Tensor) -> Tensor:
        if bool((window[:, 0, 0] == 13.0).any()):
            raise RuntimeError("a row that starts with 13")
        return window.mean(dim=(1, 2)).unsqueeze(1)


@functools.cache
def model_file(name: str) -> ModelFile:
    """By its name, one of `NAMES`."""
    return bundled() if name == BUNDLED else lstm(name, LSTMS[name])


def bundled() -> ModelFile:
    """The model that ships with the server."""
    (manifest,) = load_repository(bundled_repository()).manifests
    version = manifest.latest
    signature = manifest.signature(version.version)
    return ModelFile(BUNDLED, "the bundled model", manifest.format, read_verified(version), signature)


def lstm(name: str, shape: LstmShape, seed: int = 0) -> ModelFile:
    """With random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = WindowLstm(shape)
    return _scripted(name, str(shape), module, (shape.steps, shape.features))


def touchy(shape: tuple[int, int]) -> ModelFile:
    """For windows of this shape."""
    return _scripted("touchy", "raises on poison", Touchy(), shape)


@functools.cache
def parameters(file: ModelFile) -> int:
    """How many weights there are in it."""
    module = torch.jit.load(io.BytesIO(file.file), map_location="cpu")  # type: ignore[no-untyped-call]
    return sum(weight.numel() for weight in module.parameters())


def _scripted(name: str, description: str, module: nn.Module, window: tuple[int, int]) -> ModelFile:
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # that torch.export is the future
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    signature = ModelSignature(
        name,
        1,
        (TensorSpec("window", DataType.FP32, window),),
        (TensorSpec("answer", DataType.FP32, (1,)),),
    )
    return ModelFile(name, description, "torchscript", buffer.getvalue(), signature)
