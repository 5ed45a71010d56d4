"""Which form of a model a CPU runs. Most forms here are Python functions that turn the clock."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import pytest
from torch import nn

from scheduler.clock import ThreadTimeClock, VirtualClock
from scheduler.executor import cpu_forms, onnx_library
from scheduler.executor.cpu_forms import BF16, ONNX, TORCH, Chosen, Wanted, choose, ranges
from scheduler.executor.runner import Array, DeviceSettings, ModelUnusable, Runner
from scheduler.signature import DYNAMIC, DataType, ModelSignature, TensorSpec
from tests.scheduler.executor import onnx_models
from tests.scheduler.executor.onnx_models import archive, of_x
from tests.scheduler.executor.passage import Function, signature

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.usefixtures("torch_threads"),
]

BUCKETS = (1, 2, 4, 8)
ITS = signature(outputs=(TensorSpec("y", DataType.FP32, (2,)),))
FLEXIBLE = TensorSpec("x", DataType.FP32, (DYNAMIC,), max_shape=(4,), min_shape=(1,))
# Milliseconds of a batch.
Cost = Callable[[int], float]


class Machine:
    """Loads forms that answer `2 x`, each with its own error, in as many milliseconds as it says."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.costs: dict[str, Cost] = {TORCH: float, ONNX: lambda n: 0.5 * n, BF16: lambda n: 0.25 * n}
        self.errors = {TORCH: 0.0, ONNX: 1e-7, BF16: 1e-2}
        self.loaded: list[DeviceSettings] = []

    def load(self, _format: str, _file: bytes, its: ModelSignature, settings: DeviceSettings) -> Runner:
        self.loaded.append(settings)
        return self._form(BF16 if settings.precision == "bf16" else TORCH, its)

    def convert(self, _file: bytes, its: ModelSignature, _threads: int) -> Runner:
        return self._form(ONNX, its)

    def choose(
        self,
        precision: str = "fp32",
        backend: str = "auto",
        its: ModelSignature = ITS,
        model_format: str = "torchscript",
        samples: Sequence[Array] | None = None,
    ) -> Chosen:
        wanted = Wanted(backend, BUCKETS, 10_000_000, self.clock, samples)
        return choose(model_format, b"", its, DeviceSettings(precision=precision), wanted)

    def _form(self, name: str, its: ModelSignature) -> Runner:
        def run(inputs: Sequence[Array]) -> list[Array]:
            (x,) = inputs
            self.clock.advance(int(self.costs[name](len(x)) * 1e6))
            with np.errstate(over="ignore"):
                return [x * np.float32(2 + self.errors[name])]

        return Function(its, run)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """With BF16 and ONNX Runtime."""
    machine = Machine()
    monkeypatch.setattr(cpu_forms, "load_runner", machine.load)
    monkeypatch.setattr(cpu_forms, "_on_onnx", machine.convert)
    monkeypatch.setattr(cpu_forms, "_cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(onnx_library, "missing", list)
    return machine


def all_on(name: str) -> dict[int, str]:
    return dict.fromkeys(BUCKETS, name)


def answer(chosen: Chosen, rows: int) -> float:
    """To 1."""
    (y,) = chosen.runner.run([np.ones((rows, 2), np.float32)])
    return float(y[0, 0])


def test_the_faster_form_is_taken(machine: Machine) -> None:
    chosen = machine.choose()
    assert chosen.by_bucket == all_on(ONNX)
    assert chosen.ms == {1: {TORCH: 1.0, ONNX: 0.5}, 8: {TORCH: 8.0, ONNX: 4.0}}
    assert chosen.refused == {}
    assert chosen.seconds > 0


def test_each_batch_goes_to_the_form_for_its_size(machine: Machine) -> None:
    """And one of a size that nobody has asked for to torch."""
    machine.errors[ONNX] = 1e-6
    machine.costs[ONNX] = lambda n: 0.5 if n <= 2 else 2 * n
    chosen = machine.choose()
    assert chosen.by_bucket == {1: ONNX, 2: ONNX, 4: TORCH, 8: TORCH}
    assert [answer(chosen, rows) > 2 for rows in (1, 2, 3, 4, 8)] == [True, True, False, False, False]


def test_bf16_is_tried_only_where_the_precision_is_open(machine: Machine) -> None:
    assert machine.choose("auto").by_bucket == all_on(BF16)
    assert [settings.precision for settings in machine.loaded] == ["fp32", "bf16"]
    for precision in ("fp32", "tf32"):
        assert machine.choose(precision).by_bucket == all_on(ONNX)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_narrow_precision_is_torchs_alone(machine: Machine, precision: str) -> None:
    chosen = machine.choose(precision)
    assert (chosen.by_bucket, chosen.refused, chosen.seconds) == (all_on(TORCH), {}, 0)
    assert [settings.precision for settings in machine.loaded] == [precision]


def test_torch_can_be_asked_for(machine: Machine) -> None:
    assert machine.choose(backend="torch").by_bucket == all_on(TORCH)
    assert machine.choose("auto", "torch").by_bucket == all_on(BF16)


def test_onnx_can_be_asked_for_even_if_it_is_slower(machine: Machine) -> None:
    """Nothing is measured then, and BF16 is none of it."""
    machine.costs[ONNX] = lambda n: 5.0 * n
    for precision in ("fp32", "auto"):
        chosen = machine.choose(precision, "onnx")
        assert (chosen.by_bucket, chosen.ms) == (all_on(ONNX), {})


@pytest.mark.parametrize("backend", ["auto", "onnx"])
def test_wrong_answers_are_out(machine: Machine, backend: str) -> None:
    machine.errors[ONNX] = 1e-3
    chosen = machine.choose(backend=backend)
    assert chosen.by_bucket == all_on(TORCH)
    assert chosen.refused[ONNX].startswith("y is off by ")


def test_bf16_must_be_as_close_as_bf16_is(machine: Machine) -> None:
    machine.errors[BF16] = 0.3
    chosen = machine.choose("auto")
    assert chosen.by_bucket == all_on(ONNX)
    assert list(chosen.refused) == [BF16]


def test_samples_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is wrong for large numbers only."""
    samples: list[Array] = [np.full((3, 2), 4000, np.float32)]

    def convert(_file: bytes, its: ModelSignature, _threads: int) -> Runner:
        return Function(its, lambda inputs: [np.where(inputs[0] == 4000, 0, 2 * inputs[0])])

    monkeypatch.setattr(cpu_forms, "_on_onnx", convert)
    assert machine.choose().by_bucket == all_on(ONNX)
    chosen = machine.choose(samples=samples)
    assert chosen.by_bucket == all_on(TORCH)
    assert chosen.refused[ONNX].endswith("on the samples")


def test_a_form_that_is_wrong_at_one_size_does_not_have_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, at which it is right, it has."""

    def convert(_file: bytes, its: ModelSignature, _threads: int) -> Runner:
        return Function(its, lambda inputs: [inputs[0] * (3 if len(inputs[0]) == 4 else 2)])

    monkeypatch.setattr(cpu_forms, "_on_onnx", convert)
    chosen = machine.choose()
    assert chosen.by_bucket == {1: ONNX, 2: ONNX, 4: TORCH, 8: ONNX}
    assert chosen.refused[ONNX].endswith("on 4 rows of noise")
    assert answer(chosen, 4) == 2


def test_what_cannot_be_loaded_is_told_and_torch_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> Runner:
        raise RuntimeError("unsupported operator\nand its graph")

    monkeypatch.setattr(cpu_forms, "_on_onnx", fails)
    chosen = machine.choose()
    assert (chosen.by_bucket, chosen.refused) == (all_on(TORCH), {ONNX: "unsupported operator"})


def test_without_onnxruntime_it_is_not_tried(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_library, "missing", lambda: ["onnxruntime"])
    chosen = machine.choose()
    assert (chosen.by_bucket, chosen.refused) == (all_on(TORCH), {ONNX: "not installed: onnxruntime"})


def test_missing_is_what_python_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_library, "NEEDED", ("numpy", "no_such_library"))
    assert onnx_library.missing() == ["no_such_library"]


def test_without_bf16_in_the_cpu_it_is_not_tried(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_forms, "_cpu_flags", lambda: {"avx2"})
    chosen = machine.choose("auto")
    assert (chosen.by_bucket, chosen.refused) == (all_on(ONNX), {BF16: "this CPU has no BF16"})


def test_other_formats_and_dynamic_shapes_are_torchs(machine: Machine) -> None:
    assert machine.choose(model_format="exported_program").refused == {
        ONNX: "converted is torchscript, not exported_program"
    }
    dynamic = signature(inputs=(FLEXIBLE,), outputs=(FLEXIBLE,))
    chosen = machine.choose("auto", its=dynamic)
    assert chosen.by_bucket == all_on(TORCH)
    assert chosen.refused == dict.fromkeys((ONNX, BF16), "it has dynamic shapes")


def test_a_model_that_is_fast_anyhow_is_left_alone(machine: Machine) -> None:
    """Converting it would take longer than it could ever save."""
    machine.costs[TORCH] = lambda n: 0.05 * n
    chosen = machine.choose()
    assert (chosen.by_bucket, chosen.refused) == (all_on(TORCH), {ONNX: "too little to gain"})


def test_a_model_that_raises_is_left_to_the_warm_up(machine: Machine) -> None:
    def fails(rows: int) -> float:
        if rows > 2:
            raise ValueError("at most 2 rows")
        return float(rows)

    machine.costs[TORCH] = fails
    chosen = machine.choose()
    assert (chosen.by_bucket, chosen.refused) == (all_on(TORCH), {ONNX: "at most 2 rows"})


def test_ranges_are_told_in_a_line() -> None:
    assert ranges({1: "a", 2: "a", 4: "b", 8: "a", 16: "a"}) == "a from 1 to 2, b at 4, a from 8 to 16"


# -- with torch and ONNX Runtime ---------------------------------------------------------------------


def really(module: nn.Module, backend: str, precision: str = "fp32") -> Chosen:
    wanted = Wanted(backend, BUCKETS, None, ThreadTimeClock())
    return choose("torchscript", archive(module), of_x(), DeviceSettings(precision=precision), wanted)


def test_a_real_model_is_converted() -> None:
    assert find_spec("onnxruntime") is not None
    module = onnx_models.Recurrent(nn.LSTM(6, 8, batch_first=True))
    chosen = really(module, "onnx")
    assert (chosen.by_bucket, chosen.refused) == (all_on(ONNX), {})
    assert chosen.runner.signature.name == "m"


def test_a_real_model_that_raises_is_not() -> None:
    chosen = really(onnx_models.Raises(), "onnx")
    assert (chosen.by_bucket, chosen.refused) == (all_on(TORCH), {ONNX: "what it does depends on values"})


def test_a_file_that_is_no_model_is_refused_as_ever() -> None:
    wanted = Wanted("auto", BUCKETS, None, ThreadTimeClock())
    with pytest.raises(ModelUnusable, match="torch cannot load the file of m"):
        choose("torchscript", b"nothing", of_x(), DeviceSettings(), wanted)
