import io

import pytest
import torch

from scheduler.executor.lstm_packing import pack

SHAPES = [((6, 10), torch.float32)]


class Tail(torch.nn.Module):
    """An LSTM whose sequence, last hidden and last cell are all answers."""

    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.batch_first = bool(options.get("batch_first"))
        self.lstm = torch.nn.LSTM(10, 16, **options)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        steps = x if self.batch_first else x.transpose(0, 1)
        output, state = self.lstm(steps)
        rows_first = output if self.batch_first else output.transpose(0, 1)
        return rows_first, state[0].transpose(0, 1), state[1].transpose(0, 1)


def reloaded(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """The module as a server gets it: scripted, saved and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), file)
    file.seek(0)
    loaded: torch.jit.ScriptModule = torch.jit.load(file).eval()  # type: ignore[no-untyped-call]
    return loaded


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_lstm_answers_bit_for_bit_the_same(layers: int, batch_first: bool) -> None:
    """Sequence, last hidden and last cell, for batches other than those compared at load."""
    torch.manual_seed(layers)
    module = reloaded(Tail(num_layers=layers, batch_first=batch_first))
    packed = pack(module, SHAPES)
    assert packed is not None
    assert "aten::mkldnn_rnn_layer" in str(packed.graph)
    assert "aten::lstm" not in str(packed.graph)
    with torch.inference_mode():
        for rows in (1, 2, 5, 32):
            x = torch.randn(rows, 6, 10)
            for wanted, got in zip(module(x), packed(x), strict=True):
                assert torch.equal(wanted, got)


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"bias": False}])
def test_other_lstms_are_left_alone(options: dict[str, bool]) -> None:
    """What the layers by themselves do not cover keeps torch's own path."""
    assert pack(reloaded(Tail(**options)), SHAPES) is None


def test_model_without_lstm_is_left_alone() -> None:
    """Nothing to pack, nothing frozen."""
    assert pack(reloaded(torch.nn.Sequential(torch.nn.Linear(10, 3))), SHAPES) is None


def test_different_answers_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a torch pack weights wrongly, its users get the plain module."""
    module = reloaded(Tail())
    real = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: real(a, b + 1))
    assert pack(module, SHAPES) is None


def test_torch_without_the_parts_leaned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that has dropped them costs speed, not service."""
    module = reloaded(Tail())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pack(module, SHAPES) is None
