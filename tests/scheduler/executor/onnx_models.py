"""Modules that are converted to ONNX, and some that must not be."""

import io

import torch
from torch import Tensor, nn

from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.passage import signature

STEPS, FEATURES = 7, 5


class Recurrent(nn.Module):
    """A recurrent layer between a convolution and a linear one."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, 6, 3, padding=1)
        self.layer = layer
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.layer(torch.relu(self.conv(x)).transpose(1, 2))
        y: Tensor = self.linear(steps[:, -1, :8])
        return y


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES * STEPS, 16)
        self.second = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x.flatten(1))))
        return y


class ByName(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"b": x.sum(2)[:, :2], "unasked": x, "a": x.mean(2)[:, :2]}


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 5).any()):
            raise ValueError("too much")
        return x.sum(2)[:, :2]


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert bool(x.min() > -5), "too little"
        return x.sum(2)[:, :2]


class RaisesOnCount(nn.Module):
    """By a shape, but one that is made of values."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.nonzero(x > 5).size(0) > 0:
            raise ValueError("too much")
        return x.sum(2)[:, :2]


class RaisesInALoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for at in range(x.size(0)):
            if bool(x[at].max() > 5):
                raise ValueError("too much")
        return x.sum(2)[:, :2]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sum(2)[:, :2]
        return y if bool(x[0, 0, 0] > 0) else -y


class BySize(nn.Module):
    """Another answer for more than four rows."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.sum(2)[:, :2]
        return y if x.size(0) <= 4 else -y


class Looks(nn.Module):
    """A table, by what is in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.table(x[:, 0, 0].long())
        return y


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x[:, 0])[0][:, :2]


class Divides(nn.Module):
    """By a whole number, which may be 0."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x[:, 0, :2].int()
        return ((whole + 7) // whole).float()


def archive(module: nn.Module) -> bytes:
    """A TorchScript file, the same for the same class."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def of_x(*outputs: str, data_type: DataType = DataType.FP32) -> ModelSignature:
    """From x `[FEATURES, STEPS]` to outputs `[2]`."""
    return signature(
        inputs=(TensorSpec("x", data_type, (FEATURES, STEPS)),),
        outputs=tuple(TensorSpec(name, DataType.FP32, (2,)) for name in outputs or ("y",)),
    )
