"""What the GPU benchmark keeps and says; the device itself is not needed for that."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu, gpu_service
from bench.gpu_device import all_series, bars
from bench.gpu_models import LSTMS, NAMES, POISON, LstmShape, lstm, model_file, parameters, touchy
from bench.gpu_parity import compare
from bench.gpu_results import WHAT, Budget, Results, best, commit, shown
from bench.report import Check
from tickring.v1 import inference_pb2

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

# Of an LSTM of one bias per layer: what a model card of these shapes says. torch has two.
PARAMETERS = {"lstm_a": 160_901, "lstm_b": 1_000_000, "lstm_c": 30_000_000}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"bench.gpu: no CUDA device here for torch {torch.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--models", "lstm_z"], "--models lstm_z: must be of sp500_direction, lstm_a, lstm_b, lstm_c"),
        (["--part", "device,coffee"], "--part coffee: must be all, or of floor, device,"),
        (["--minutes-budget", "0"], "--minutes-budget 0: must be more than 0"),
        (["--loadgen", "/nowhere"], "--loadgen /nowhere: no such file"),
    ],
)
def test_misuse_ends_with_2(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err


def test_two_calls_of_ten_minutes_suffice_for_everything() -> None:
    """As bench/results/README.md divides it."""
    for parts in (("floor", "device"), ("parity", "isolation", "soak", "service")):
        assert sum(gpu.minutes_by_part(parts, None, quick=False).values()) <= 9
    everything = gpu.minutes_by_part(tuple(gpu.SHARES), 36, quick=False)
    assert sum(everything.values()) == pytest.approx(36)
    assert everything["device"] == pytest.approx(16)


def test_a_run_that_is_cut_off_leaves_what_it_had(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    results = Results(out, {"device": "none"})
    assert json.loads(out.read_text())["what"] == WHAT
    results.add("device", {"batch": 1, "p99_us": 3.0})
    results.add("device", {"batch": 2, "p99_us": math.nan})
    results.note("soak", "not measured for want of time")
    kept = json.loads(out.read_text())
    assert kept["run"] == {"device": "none"}
    assert kept["parts"]["device"]["rows"] == [{"batch": 1, "p99_us": 3.0}, {"batch": 2, "p99_us": None}]
    assert kept["parts"]["soak"]["notes"] == ["not measured for want of time"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_checks_are_printed_and_kept_with_their_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(None, {})
    assert results.check("device", Check("p99", 140, 150, "us")) == 0
    assert results.check("device", Check("p99", 160, 150, "us")) == 1
    assert [check["holds"] for check in results.as_json()["parts"]["device"]["checks"]] == [True, False]
    printed = capsys.readouterr().out
    assert "holds" in printed
    assert "BROKEN" in printed


def test_tables_have_a_column_for_whatever_any_row_has(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(None, {})
    results.show("floor")
    assert "floor: not measured" in capsys.readouterr().out
    results.add("floor", {"a": 1, "b": math.nan})
    results.add("floor", {"a": 1234567.0, "c": "x"})
    results.show("floor")
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["a", "b", "c"]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["1,234,567", "-", "x"]
    assert shown(0.000123) == "0.000123"


def row(
    model: str, precision: str, p99_us: float, windows_per_s: float, **others: object
) -> dict[str, object]:
    return {
        "model": model,
        "precision": precision,
        "mode": "graph",
        "wait": "block",
        "streams": 1,
        "batch": 1,
        "p99_us": p99_us,
        "windows_per_s": windows_per_s,
    } | others


def test_bars_take_the_best_of_what_they_are_about() -> None:
    """One window of the bundled model alone on the device; any batch of shape A in FP16."""
    checks = bars(
        [
            row("sp500_direction", "fp32", 170, 1),
            row("sp500_direction", "fp16", 140, 1, wait="spin"),
            row("sp500_direction", "fp16", 20, 1, streams=4),
            row("sp500_direction", "fp16", 10, 1, batch=8),
            row("lstm_a", "fp32", 1, 9e6),
            row("lstm_a", "fp16", 1, 1.6e6, batch=512),
            row("lstm_a", "fp16", 1, 1.8e6, batch=1024, streams=2),
        ]
    )
    assert [(check.figure, check.holds) for check in checks] == [(140, True), (1.8e6, True)]
    assert "fp16, graph, spin" in checks[0].name
    assert "batch 1024, 2 streams" in checks[1].name
    assert bars([]) == []


def test_service_bars_count_one_window_per_request() -> None:
    rows = [
        {"mode": "unary", "rows": 1, "front ends": 8, "windows_per_s": 61_000.0},
        {"mode": "unary", "rows": 8, "front ends": 8, "windows_per_s": 200_000.0},
        {"mode": "stream", "rows": 1, "front ends": 12, "windows_per_s": 100_000.0},
    ]
    checks = gpu_service.bars(rows)
    assert [(check.figure, check.holds) for check in checks] == [(61_000, True), (100_000, False)]


def test_best_ignores_what_is_no_number() -> None:
    rows: list[dict[str, object]] = [{"x": math.nan}, {"x": None}, {"x": 3.0}, {"x": 2.0}]
    assert best(rows, "x", smallest=True) == {"x": 2.0}
    assert best(rows, "x", smallest=False) == {"x": 3.0}
    assert best(rows[:2], "x", smallest=True) is None


def test_a_budget_lets_nothing_begin_that_does_not_fit() -> None:
    assert Budget(1).allows(50)
    assert not Budget(1).allows(70)
    assert not Budget(0).allows(0.001)


def test_everything_that_is_asked_for_is_measured() -> None:
    """Every model, precision, mode, and number of streams; what the bars are about comes first."""
    series = list(all_series(NAMES, quick=False))
    assert {(each.model, each.precision, each.graphs) for each in series} >= {
        (model, precision, graphs)
        for model in NAMES[:3]
        for precision in ("fp32", "fp16")
        for graphs in (True, False)
    }
    assert {each.precision for each in series} == {"fp32", "tf32", "fp16", "bf16"}
    assert {each.streams for each in series if each.precision == "fp32" and each.model == "lstm_b"} == {
        (1, 2, 4)
    }
    assert {each.sizes[-1] for each in series if each.model == "lstm_a"} == {1024}
    assert {each.model for each in series} == set(NAMES)
    assert [each.precision for each in series[:3]] == ["fp16"] * 3


@pytest.mark.parametrize("name", ["lstm_a", "lstm_b"])
def test_lstms_have_their_shape(name: str) -> None:
    """By their parameters, less the second bias that torch's layers have; and by what they take and give."""
    shape, file = LSTMS[name], model_file(name)
    second_biases = shape.layers * 4 * shape.units
    assert parameters(file) - second_biases == pytest.approx(PARAMETERS[name], rel=0.02)
    answer = file.load("cpu", "fp32").forward([torch.randn(2, shape.steps, shape.features)])
    assert [tuple(each.shape) for each in answer] == [(2, 1)]


def test_lstms_are_the_same_every_time_and_others_for_another_seed() -> None:
    shape = LstmShape(steps=3, features=4, layers=1, units=5)
    window = torch.ones(1, 3, 4)

    def answer(seed: int) -> float:
        return float(lstm("tiny", shape, seed).load("cpu", "fp32").forward([window])[0])

    before = torch.random.get_rng_state()
    assert answer(1) == answer(1) != answer(2)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's numbers are touched"


def test_touchy_raises_on_poison_only() -> None:
    model = touchy((3, 4)).load("cpu", "fp32")
    window = torch.zeros(2, 3, 4)
    assert tuple(model.forward([window])[0].shape) == (2, 1)
    window[1, 0, 0] = POISON
    with pytest.raises(Exception, match="starts with 13"):
        model.forward([window])


def test_parity_compares_every_precision_with_fp32_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """A CPU takes the place of the device; there FP32 and TF32 are the reference itself."""
    results = Results(None, {})
    assert compare(results, "cpu", ["lstm_a"], Budget(5)) == 0
    rows = results.rows("parity")
    assert [found["precision"] for found in rows] == ["fp32", "tf32", "fp16", "bf16"]
    assert all(found["verdict"] == "holds" for found in rows)
    assert rows[0]["largest error"] < rows[2]["largest error"] < rows[3]["largest error"]
    assert "bf16" in capsys.readouterr().out


def test_a_generator_is_given_what_a_client_would_send(tmp_path: Path) -> None:
    """And its figures are added up over the time that all of them took."""
    program = tmp_path / "generator"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        f"open({str(tmp_path / 'seen')!r}, 'wb').write(open(given['--request'], 'rb').read())\n"
        "assert given['--method'] == '/tickring.v1.InferenceService/PredictStream', given\n"
        "assert given['--mode'] == 'stream'\n"
        "print(json.dumps({'rps': 5, 'p50_us': 10, 'p99_us': 20, 'ok': int(given['--n']) - 1}))\n"
    )
    program.chmod(0o755)
    served = gpu_service.by_generator(program, "127.0.0.1:1", "stream", 2, 2, 0.001)
    assert (served.p50_us, served.p99_us, served.failed) == (10, 20, 2)
    assert served.calls_per_s > 0
    message = inference_pb2.PredictStreamRequest.FromString((tmp_path / "seen").read_bytes())
    (tensor,) = message.request.inputs
    assert (message.request.model_name, list(tensor.shape)) == ("sp500_direction", [2, 50, 60])
    assert np.isfinite(np.frombuffer(tensor.data, np.float32)).all()


def test_commit_is_known_in_a_checkout() -> None:
    assert commit() != ""
