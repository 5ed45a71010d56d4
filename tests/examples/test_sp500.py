"""The S&P 500 example: its features, its split, the model it ships, and the client's side of the replay."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import grpc
import numpy as np
import pytest
import torch

from client import Client, PredictionError
from examples.sp500 import demo, export, features, replay, save_windows
from examples.sp500.evaluate import tables
from examples.sp500.model import CnnLstm, parameter_count
from examples.sp500.split import split_by_date

# TorchScript is deprecated and still the format that every torch can load and serve.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

MODEL_FOLDER = Path(__file__).parents[2] / "models" / "sp500_direction"
# Enough for a full warm-up and some windows after it, and quick.
DAYS = 500


@pytest.fixture(scope="module")
def history() -> features.History:
    return features.load_history()


@pytest.fixture(scope="module")
def windows(history: features.History) -> features.Windows:
    return features.make_windows(history)


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return tomllib.loads((MODEL_FOLDER / "model.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((MODEL_FOLDER / "metrics.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def shipped() -> torch.jit.ScriptModule:
    torch.set_num_threads(1)
    return cast(torch.jit.ScriptModule, torch.jit.load(MODEL_FOLDER / "1" / "model.pt"))  # type: ignore[no-untyped-call]


def changed(history: features.History, days: slice, factor: float) -> features.History:
    """The same history, all values of `days` multiplied."""

    def bars(old: features.Bars) -> features.Bars:
        values = {name: array.copy() for name, array in vars(old).items()}
        for array in values.values():
            array[days] *= factor
        return features.Bars(**values)

    return dataclasses.replace(history, sp500=bars(history.sp500), nasdaq=bars(history.nasdaq))


def first_days(history: features.History, n: int) -> features.History:
    def bars(old: features.Bars) -> features.Bars:
        return features.Bars(**{name: array[:n] for name, array in vars(old).items()})

    return features.History(history.dates[:n], bars(history.sp500), bars(history.nasdaq))


# Features


def test_fifty_features_with_distinct_names() -> None:
    """The names are the rows of a window."""
    assert len(features.FEATURE_NAMES) == len(set(features.FEATURE_NAMES)) == 50


def test_windows_are_finite_float32_of_the_documented_shape(windows: features.Windows) -> None:
    """Features first, about twenty years, every array as long as the others."""
    n = len(windows.windows)
    assert windows.windows.shape == (n, 50, 60)
    assert n > 19 * 250
    assert windows.windows.dtype == np.float32
    assert np.isfinite(windows.windows).all()
    assert np.abs(windows.windows).max() <= features.CLIP
    assert np.isfinite(windows.target_pct).all()
    assert {len(array) for array in vars(windows).values()} == {n}


def test_every_feature_moves(windows: features.Windows) -> None:
    """A feature that is always the same number would be a mistake that nothing else shows."""
    assert (windows.windows[:, :, -1].std(axis=0) > 0.1).all()


def test_the_future_does_not_change_past_features(history: features.History) -> None:
    """Rewriting every day after t leaves every feature up to t as it was, bit for bit."""
    short = first_days(history, DAYS)
    for day in (200, 350, DAYS - 2):
        before = features.feature_matrix(short)
        after = features.feature_matrix(changed(short, slice(day + 1, None), 1.5))
        np.testing.assert_array_equal(after[: day + 1], before[: day + 1])
        assert (after[day + 1] != before[day + 1]).any()


def test_cutting_off_the_future_does_not_change_past_features(history: features.History) -> None:
    """Statistics of the whole series would show here."""
    whole = features.feature_matrix(history)
    np.testing.assert_array_equal(features.feature_matrix(first_days(history, DAYS)), whole[:DAYS])


def test_target_is_the_day_after_the_window(history: features.History, windows: features.Windows) -> None:
    """Window, target date and target line up, in date order, for every row."""
    position = np.searchsorted(history.dates, windows.dates)
    close = history.sp500.close
    expected = 100 * np.log(close[position + 1] / close[position])
    np.testing.assert_allclose(windows.target_pct, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(windows.target_dates, history.dates[position + 1])
    np.testing.assert_array_equal(windows.first_dates, history.dates[position - 59])
    assert (np.diff(windows.dates.astype(np.int64)) > 0).all()


def test_last_column_of_a_window_is_its_last_day(
    history: features.History, windows: features.Windows
) -> None:
    """Oldest day first: the first window ends on `dates[0]`, the last one on `dates[-1]`."""
    matrix = features.feature_matrix(history)
    for row in (0, -1):
        day = int(np.searchsorted(history.dates, windows.dates[row]))
        np.testing.assert_array_equal(
            windows.windows[row], matrix[day - 59 : day + 1].T.astype(np.float32), strict=True
        )


def test_classes_are_down_flat_up() -> None:
    """The band belongs to flat, on both sides."""
    moves = np.array([-0.26, -0.25, 0.0, 0.25, 0.26])
    assert features.classify(moves).tolist() == [0, 1, 1, 1, 2]


# Split


def test_no_day_is_in_two_parts(windows: features.Windows) -> None:
    """From the first day a part's windows read to its last target, the parts lie apart."""
    split = split_by_date(windows)
    for earlier, later in ((split.train, split.validation), (split.validation, split.test)):
        assert windows.target_dates[earlier].max() < windows.first_dates[later].min()
    assert min(len(part) for part in vars(split).values()) > 500


def test_model_card_states_the_split_and_the_figures(
    windows: features.Windows, metrics: dict[str, Any]
) -> None:
    """What the card says is what the code does and what training measured."""
    card = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    assert tables(**metrics["test"]) in card
    for name, rows in vars(split_by_date(windows)).items():
        dates = (windows.first_dates[rows[0]], windows.target_dates[rows[0]], windows.target_dates[rows[-1]])
        assert f"| {name} | {len(rows):,} | {dates[0]} | {dates[1]} to {dates[2]} |" in card


# The shipped model


def test_sha256_is_that_of_the_file(manifest: dict[str, Any]) -> None:
    """The server refuses a file whose hash differs."""
    digest = hashlib.sha256((MODEL_FOLDER / "1" / "model.pt").read_bytes()).hexdigest()
    assert manifest["versions"]["1"]["sha256"] == digest
    assert manifest["name"] == MODEL_FOLDER.name


@pytest.mark.parametrize("n", [1, 5])
def test_outputs_match_the_manifest(
    shipped: torch.jit.ScriptModule, manifest: dict[str, Any], windows: features.Windows, n: int
) -> None:
    """Shapes in the order of the tuple, FP32, finite, probabilities and weights that sum to one."""
    (spec,) = manifest["inputs"]
    batch = torch.from_numpy(windows.windows[:n])
    assert list(batch.shape) == [n, *spec["shape"]]
    with torch.no_grad():
        outputs = shipped(batch)
    assert [list(output.shape) for output in outputs] == [[n, *spec["shape"]] for spec in manifest["outputs"]]
    assert all(output.dtype == torch.float32 and output.isfinite().all() for output in outputs)
    named = dict(zip([spec["name"] for spec in manifest["outputs"]], outputs, strict=True))
    for name in ("classification_probs", "ensemble_weights"):
        assert (named[name] >= 0).all()
        torch.testing.assert_close(named[name].sum(dim=1), torch.ones(n))
    assert (named["regression_uncertainty"] > 0).all()


def test_a_row_does_not_depend_on_its_batch(
    shipped: torch.jit.ScriptModule, windows: features.Windows
) -> None:
    """Batching is invisible: the same window gives the same answer alone and among extreme neighbours."""
    batch = torch.from_numpy(windows.windows[1000:1008]).clone()
    batch[1::2] *= 50
    with torch.no_grad():
        together = shipped(batch)
        for row in range(len(batch)):
            for alone, among in zip(shipped(batch[row : row + 1]), together, strict=True):
                torch.testing.assert_close(alone[0], among[row], rtol=1e-4, atol=1e-5)


def test_shipped_model_gives_the_documented_figures(
    shipped: torch.jit.ScriptModule, windows: features.Windows, metrics: dict[str, Any]
) -> None:
    """The file in the repository is the one that was measured, on the features of this code."""
    test = split_by_date(windows).test
    with torch.no_grad():
        probs = shipped(torch.from_numpy(windows.windows[test]))[0].double().numpy()
    log_loss = -np.log(probs[np.arange(len(test)), windows.target_class[test]]).mean()
    assert log_loss == pytest.approx(metrics["test"]["classification"]["this model"]["log_loss"], abs=1e-4)


def test_parameter_count(shipped: torch.jit.ScriptModule) -> None:
    """About 300k, in the source and in the shipped file alike."""
    assert 280_000 < parameter_count(CnnLstm()) < 320_000
    assert parameter_count(shipped) == parameter_count(CnnLstm())


def test_export_is_loadable_identical_and_names_no_path(tmp_path: Path) -> None:
    """The archive answers as the module does, its manifest has its hash, and it holds no source positions."""
    torch.manual_seed(0)
    model = CnnLstm().eval()
    path = export.export(model, tmp_path)
    window = torch.randn(2, 50, 60)
    with torch.no_grad():
        for ours, theirs in zip(model(window), torch.jit.load(path)(window), strict=True):  # type: ignore[no-untyped-call]
            assert torch.equal(ours, theirs)
    manifest = tomllib.loads((tmp_path / "model.toml").read_text(encoding="utf-8"))
    assert manifest["versions"]["1"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert b"debug_pkl" not in path.read_bytes()


# Replay and demo


class Answer(SimpleNamespace):
    """A prediction as the client gives it: outputs by name, and timing."""

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]


class Recorder:
    """Stands in for the client: answers after a turn of the loop, keeps order and concurrency."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.started: list[float] = []
        self.outstanding = 0
        self.most_outstanding = 0

    async def predict(self, inputs: dict[str, Any], **_options: Any) -> Any:
        value = float(inputs["window"][0, 0, 0])
        self.started.append(value)
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)
        try:
            # Later requests overtake earlier ones, as they may on the RPC stream.
            for _ in range(1 + int(value) % 3):
                await asyncio.sleep(0)
            if value == self.fail_at:
                raise PredictionError(grpc.StatusCode.UNAVAILABLE, "gone")
        finally:
            self.outstanding -= 1
        outputs = {
            "classification_probs": np.full((1, 3), value),
            "regression_mean": np.full((1, 1), value),
            "regression_uncertainty": np.full((1, 1), value),
        }
        timing = SimpleNamespace(queue_wait_ns=int(value), compute_ns=1, batch_size=1)
        return Answer(timing=timing, outputs=outputs)


def numbered_windows(n: int) -> Any:
    return np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, 50, 60))


async def test_replay_streams_in_order_with_so_many_in_flight() -> None:
    """Requests start in date order, never more than asked for, and answers land on their own day."""
    recorder, seen = Recorder(), list[int]()
    answers = await replay.stream_history(cast(Client, recorder), numbered_windows(100), 7, seen.append)
    assert recorder.started == list(range(100))
    assert recorder.most_outstanding == 7
    assert answers.mean_pct.tolist() == answers.queue_wait_ns.tolist() == list(range(100))
    assert (answers.round_trip_ns > 0).all()
    assert seen[-1] == 100


async def test_replay_ends_with_the_first_error() -> None:
    """One failed prediction stops the replay as itself, with nothing outstanding."""
    recorder = Recorder(fail_at=20)
    with pytest.raises(PredictionError, match="gone"):
        await replay.stream_history(cast(Client, recorder), numbered_windows(100), 7, lambda _: None)
    assert recorder.outstanding == 0
    assert len(recorder.started) < 40


def test_replay_without_a_server_says_so_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and one line on stderr that names the target."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        assert replay.main(["--target", target, "--ready-timeout-s", "0.3"]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"replay: {target}: ")
    assert error.count("\n") == 1


def test_demo_fails_with_the_servers_own_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that ends before it is ready: its stderr is shown, exit code 1."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    monkeypatch.setattr(demo, "server_command", lambda _: (command, "127.0.0.1:1"))
    monkeypatch.setattr(demo, "STOP_SIGNALS", ())  # the test run keeps its own handlers
    assert demo.main() == 1
    error = capfd.readouterr().err
    assert "no such device" in error
    assert "ended with 1 before it was ready" in error


def test_demo_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is raised while the server runs, it is gone afterwards, even one that ignores SIGTERM."""
    monkeypatch.setattr(demo, "STOP_TIMEOUT_S", 0.2)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"

    path = tmp_path / "log"
    started: list[subprocess.Popen[bytes]] = []

    def interrupted_once_up(log: IO[bytes]) -> None:
        with demo.running_server([sys.executable, "-c", deaf], log) as process:
            started.append(process)
            while not path.read_bytes():
                assert process.poll() is None
            raise KeyboardInterrupt

    with path.open("w+b") as log, pytest.raises(KeyboardInterrupt):
        interrupted_once_up(log)
    assert started[0].returncode == -signal.SIGKILL


def test_free_ports_are_distinct_and_free() -> None:
    """Each can be listened on at once."""
    ports = demo.free_ports(3)
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind((demo.HOST, port))
    assert len(set(ports)) == 3


def test_windows_are_written_newest_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "days"
    assert save_windows.main([str(file), "--last", "5"]) == 0
    assert capsys.readouterr().out == f"{file}: 5 windows of 50 x 60\n"
    written = np.load(file)
    assert written.dtype == np.float32
    assert np.array_equal(written, features.make_windows(features.load_history()).windows[-5:])


@pytest.mark.parametrize(
    ("last", "says"), [("-1", "--last is -1, allowed are 0 to "), ("9999999", "allowed are")]
)
def test_as_many_windows_as_there_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], last: str, says: str
) -> None:
    with pytest.raises(SystemExit):
        save_windows.main([str(tmp_path / "days.npy"), "--last", last])
    assert says in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_windows_that_cannot_be_written_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert save_windows.main([str(tmp_path / "nowhere" / "days.npy")]) == 1
    assert capfd.readouterr().err.endswith("No such file or directory\n")
