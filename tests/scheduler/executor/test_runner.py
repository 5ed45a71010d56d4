"""How formats become models."""

import subprocess
import sys
import types

import pytest

from scheduler.executor.runner import BACKENDS, DeviceSettings, ModelUnusable, load_model, load_runner
from server.repository import FILES
from tests.scheduler.executor.passage import signature


def test_looking_at_runners_does_not_load_torch() -> None:
    """Nor any backend: only who loads a model pays for what reads it."""
    code = (
        "import sys, scheduler.executor.runner, scheduler.executor.fake\n"
        "print('torch' in sys.modules, any('executor.torch' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_format_of_a_manifest_has_a_backend() -> None:
    """And no other has."""
    assert BACKENDS.keys() == FILES.keys()


def test_a_third_backend_is_a_module_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the file, the signature and the settings as they are."""
    asked: list[tuple[object, ...]] = []
    backend = types.ModuleType("third_backend")

    def load(*arguments: object) -> str:
        asked.append(arguments)
        return "its model"

    backend.__dict__["load"] = load
    monkeypatch.setitem(sys.modules, "third_backend", backend)
    monkeypatch.setitem(BACKENDS, "third", "third_backend")
    its, settings = signature(), DeviceSettings(precision="bf16")
    assert load_model("third", b"file", its, settings) == "its model"  # type: ignore[comparison-overlap]
    assert asked == [(b"file", its, settings)]


def test_an_unknown_format_is_refused() -> None:
    """With what is known."""
    with pytest.raises(ModelUnusable) as refused:
        load_model("onnx", b"", signature(), DeviceSettings())
    assert str(refused.value) == "format onnx is unknown, allowed are torchscript, exported_program"


def test_a_runner_over_arrays_is_for_the_cpu() -> None:
    """Arrays are not on a GPU."""
    with pytest.raises(ModelUnusable, match=r"^a runner over arrays computes on the cpu, not on cuda:1$"):
        load_runner("torchscript", b"", signature(), DeviceSettings(device="cuda:1"))
