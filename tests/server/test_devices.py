"""Which device each engine runs on."""

import subprocess
import sys
from types import ModuleType

import pytest

from scheduler.arena import Arena, Dimensions
from server.devices import engine_devices, visible_gpus
from server.problems import SettingsError
from server.settings import MAX_ENGINES
from server.supervisor import CHAIRS_PER_DEVICE
from tests.server.processes import ENVIRONMENT


def never() -> int:
    raise AssertionError("nobody asked for GPUs that are not named")


@pytest.mark.parametrize(
    ("setting", "gpus", "devices"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 1, ("cuda:0",)),
        ("auto", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", 2, ("cuda:0", "cuda:1")),
    ],
)
def test_every_visible_gpu(setting: str, gpus: int, devices: tuple[str, ...]) -> None:
    """Or the CPU, where that is allowed."""
    assert engine_devices(setting, lambda: gpus) == devices


@pytest.mark.parametrize("setting", ["cpu", "cuda:3", "cpu,cpu", "cuda:1,cpu,cuda:0"])
def test_named_devices_are_not_counted(setting: str) -> None:
    """Whether they are here is found out by their engines."""
    assert engine_devices(setting, never) == tuple(setting.split(","))


@pytest.mark.parametrize(
    ("setting", "gpus", "line"),
    [
        (
            "cuda",
            0,
            "executor.device = cuda: must be auto or cpu, for no GPU is visible here "
            "(by CUDA_VISIBLE_DEVICES, or by NVML: the extra gpu)",
        ),
        ("cuda", 17, "executor.device = cuda: must name at most 16 of the 17 GPUs that are visible"),
        ("auto", 17, "executor.device = auto: must name at most 16 of the 17 GPUs that are visible"),
    ],
)
def test_what_cannot_be_is_one_line(setting: str, gpus: int, line: str) -> None:
    """With what is allowed."""
    with pytest.raises(SettingsError) as refused:
        engine_devices(setting, lambda: gpus)
    assert str(refused.value) == line


def test_there_may_be_as_many_engines_as_the_arena_has_room_for() -> None:
    """Two chairs for each device; one more chair does not fit."""

    def arena(engines: int) -> Arena:
        return Arena.anonymous(Dimensions(1, 1, 1, 64, 64, engines=engines))

    chairs = MAX_ENGINES * CHAIRS_PER_DEVICE
    assert arena(chairs).native.engines == chairs
    with pytest.raises(ValueError, match="engines is 33, allowed is 1 to 32"):
        arena(chairs + 1)


@pytest.mark.parametrize(
    ("named", "count"),
    [
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("2,0, 5", 3),
        ("0,-1,1", 1),  # CUDA shows what is before the first that it does not know
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1", 2),
        ("MIG-GPU-8932f937/1/0", 1),
    ],
)
def test_gpus_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, named: str, count: int) -> None:
    """Then the driver is not asked."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}) == count


class Nvml(ModuleType):
    """The few calls of nvidia-ml-py that are used, any of which may fail."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int, failing: str = "") -> None:
        super().__init__("pynvml")
        self.count = count
        self.failing = failing
        self.open = 0

    def nvmlInit(self) -> None:
        self._call("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._call("count")
        return self.count

    def _call(self, name: str) -> None:
        if name == self.failing:
            raise self.NVMLError(name)


@pytest.mark.parametrize(("failing", "count"), [("", 4), ("init", 0), ("count", 0)])
def test_gpus_that_the_driver_knows(monkeypatch: pytest.MonkeyPatch, failing: str, count: int) -> None:
    """None where there is no driver; NVML is closed again."""
    nvml = Nvml(4, failing)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert visible_gpus({}) == count
    assert nvml.open == 0


def test_without_nvml_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `gpu` is not installed."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible_gpus({}) == 0


def test_asking_loads_no_torch() -> None:
    """The supervisor asks, and has no use for it."""
    code = "import sys, server.devices as d; d.visible_gpus(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
