"""The `tickring` command: what it prints, and how it exits."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from client import cli
from tickring.v1 import inference_pb2, types_pb2

if TYPE_CHECKING:
    from tests.client.conftest import Standin

NOBODY = "127.0.0.1:1"
ITEM = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def _target(standin: "Standin", monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds the stand-in by itself."""
    monkeypatch.setenv("TICKRING_TARGET", standin.target)


def npy(folder: Path, array: npt.NDArray[Any], name: str = "x.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def csv(folder: Path, text: str) -> str:
    (folder / "x.csv").write_text(text)
    return str(folder / "x.csv")


def shell(arguments: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs the command as a shell would."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "client.cli", *arguments], input=stdin, capture_output=True, env=environment
    )


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `predict --json` answers to arguments that are right."""
    assert cli.run(["predict", "--json", *arguments]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.err.startswith("tickring: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("array", [ITEM, ITEM[np.newaxis], np.stack([ITEM, ITEM + 1])])
def test_predict_from_npy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], array: npt.NDArray[Any]
) -> None:
    """One item with or without batch dimension, or several rows; the only input needs no name."""
    answer = predicted(capsys, "--input", npy(tmp_path, array))
    np.testing.assert_array_equal(answer["outputs"]["window"], array.reshape(-1, 2, 3))
    assert (answer["model_name"], answer["timing"]["batch_bucket"]) == ("", 4)
    assert answer["round_trip_ns"] > 0


@pytest.mark.parametrize("text", ["0,1,2,3,4,5\n", "0,1,2\n3,4,5\n", "# a comment\n0, 1, 2, 3, 4, 5"])
def test_predict_from_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """An item on one line, or over several lines of its last dimension, in the model's dtype."""
    answer = predicted(capsys, "--input", f"window={csv(tmp_path, text)}")
    assert answer["outputs"]["window"] == [ITEM.tolist()]


def test_predict_several_rows_of_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One item per line."""
    answer = predicted(capsys, "--input", csv(tmp_path, "0,1,2,3,4,5\n1,2,3,4,5,6\n"))
    assert answer["outputs"]["window"] == [ITEM.tolist(), (ITEM + 1).tolist()]


def test_predict_several_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by name, each in its own dtype: integers keep all their digits."""
    a = csv(tmp_path, "9007199254740993,2\n")
    b = npy(tmp_path, np.array([[True]]))
    answer = predicted(capsys, "--model", "pair", "--input", f"a={a}", "--input", f"b={b}")
    assert answer["outputs"] == {"a": [[9007199254740993, 2]], "b": [[True]]}


@pytest.mark.parametrize("kind", ["npy", "csv"])
def test_predict_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """`-` takes either kind, told apart by content."""
    data = io.BytesIO(b"0,1,2,3,4,5")
    if kind == "npy":
        data = io.BytesIO()
        np.save(data, ITEM)
        data.seek(0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert predicted(capsys, "--input", "-")["outputs"]["window"] == [ITEM.tolist()]


def test_predict_passes_its_options_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server sees all of them."""
    options = ["--model", "request", "--model-version", "3", "--priority", "low", "--timeout", "9"]
    options += ["--output", "b", "--output", "a", "--request-id", "r1", "--routing-key", "ES"]
    answer = predicted(capsys, "--input", npy(tmp_path, ITEM), *options)
    request = inference_pb2.PredictRequest.FromString(bytes(answer["outputs"]["request"][0]))
    assert (request.model_name, request.model_version) == ("request", "3")
    assert request.priority == types_pb2.PRIORITY_BACKGROUND_TASKS
    assert list(request.output_names) == ["b", "a"]
    assert (request.request_id, request.routing_key) == ("r1", "ES")
    assert 1e9 < answer["outputs"]["remaining_ns"][0][0] < 9.2e9  # gRPC rounds a little up


def test_predict_shows_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Output names, shapes and where the time went; NaN and long arrays do not disturb it."""
    rows = np.stack([ITEM, np.full((2, 3), np.nan, np.float32)])
    assert cli.run(["predict", "--input", npy(tmp_path, rows)]) == 0
    out = capsys.readouterr().out
    assert "window" in out
    assert "[2, 2, 3]" in out
    assert "round trip" in out


def test_json_stays_json_for_numbers_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As protobuf writes them."""
    rows = np.array([[[np.nan, np.inf, -np.inf], [1, 2, 3]]], np.float32)
    answer = predicted(capsys, "--input", npy(tmp_path, rows))
    assert answer["outputs"]["window"][0][0] == ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("in_flight", ["1", "7"])
def test_stream_sends_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], in_flight: str) -> None:
    """One JSON line per row, whatever is in flight, and a summary on standard error."""
    rows = np.arange(20 * 6, dtype=np.float32).reshape(20, 2, 3)
    assert cli.run(["stream", "--json", "--in-flight", in_flight, "--input", npy(tmp_path, rows)]) == 0
    captured = capsys.readouterr()
    answers = sorted(
        (json.loads(line) for line in captured.out.splitlines()), key=lambda answer: answer["row"]
    )
    assert [answer["row"] for answer in answers] == list(range(20))
    np.testing.assert_array_equal([answer["outputs"]["window"][0] for answer in answers], rows)
    assert captured.err.startswith("20 rows answered, 0 failed")
    assert all(word in captured.err for word in ("p50", "p99", "max"))


def test_stream_goes_on_after_a_row_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each row's end is on its line; the exit code and one line say that some failed."""
    rows = np.zeros((3, 2, 3), np.float32)
    arguments = ["stream", "--model", "status", "--routing-key", "NOT_FOUND", "--input", npy(tmp_path, rows)]
    assert cli.run(arguments) == 1
    captured = capsys.readouterr()
    assert [line.split("  ", 1)[1] for line in captured.out.splitlines()] == [
        "failed  NOT_FOUND: scripted NOT_FOUND"
    ] * 3
    summary, error = captured.err.splitlines()
    assert summary.startswith("0 rows answered, 3 failed")
    assert error.startswith("tickring: 3 rows failed, the first: row ")
    assert cli.run([*arguments, "--json"]) == 1
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["error"]["reason"] == "SCRIPTED"


def test_health_exits_0_only_when_serving(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is printed either way."""
    assert cli.run(["health"]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert cli.run(["health", "starting"]) == 1
    assert capsys.readouterr().out == "NOT_SERVING\n"
    assert cli.run(["health", "starting", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"service": "starting", "status": "NOT_SERVING"}


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for programs."""
    assert cli.run(["models"]) == 0
    out = capsys.readouterr().out
    assert "version 7 READY" in out
    assert "[n, 2, 3]" in out
    assert cli.run(["models", "--json"]) == 0
    echo, _ = json.loads(capsys.readouterr().out)
    assert echo["inputs"] == [{"name": "window", "dtype": "float32", "shape": [2, 3]}]
    assert (echo["is_default"], len(echo["versions"])) == (True, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["health", "--target", NOBODY], "UNAVAILABLE: "),
        (["models", "--target", NOBODY], "UNAVAILABLE: "),
        (["health", "nobody"], "NOT_FOUND: the server keeps no health of 'nobody'"),
        (["predict", "--model", "missing", "--input", "FILE"], "NOT_FOUND: no model 'missing'"),
        (
            ["predict", "--model", "hold", "--timeout", "0.1", "--input", "FILE"],
            "DEADLINE_EXCEEDED: ",
        ),
        (
            ["predict", "--model", "status", "--routing-key", "INTERNAL", "--input", "FILE"],
            "INTERNAL: scripted",
        ),
    ],
)
def test_a_failed_call_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """With one line that begins with the status."""
    path = npy(tmp_path, ITEM)
    assert cli.run([path if argument == "FILE" else argument for argument in arguments]) == 1
    assert complaint(capsys).startswith(f"tickring: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["bogus"], "No such command 'bogus'"),
        (["predict"], "Missing option '--input'"),
        (["predict", "--bogus"], "No such option: --bogus"),
        (["predict", "--input", "FILE", "--priority", "urgent"], "real_time_trading"),
        (["predict", "--input", "FILE", "--timeout", "0"], "over 0"),
        (["predict", "--input", "FILE", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["stream", "--input", "FILE", "--in-flight", "0"], "Invalid value for '--in-flight'"),
        (["predict", "--input", "nowhere.npy"], "cannot read nowhere.npy: No such file"),
        (["predict", "--input", "FILE", "--input", "FILE"], "NAME=FILE"),
        (["predict", "--input", "a=FILE", "--input", "a=FILE"], "given twice"),
        (["predict", "--input", "a=-", "--input", "b=-"], "one input only"),
        (["predict", "--input", "door=FILE"], "no input 'door'; it has window"),
        (["predict", "--model", "pair", "--input", "FILE"], "has the inputs a, b"),
        (["predict", "--model", "pair", "--input", "b=BOOL"], "also needs a"),
        (["predict", "--model", "pair", "--input", "a=INTS", "--input", "b=BOOL"], "number of rows"),
        (["predict", "--input", "BOOL"], "dtype is bool; 'window' takes float32"),
        (["predict", "--input", "WIDE"], "shape is [1, 2, 4]; 'window' takes [2, 3] or [n, 2, 3]"),
        (["predict", "--input", "CSV"], "could not convert string 'a' to float32"),
        (["predict", "--input", "PICKLE"], "allow_pickle=False"),
        (["predict", "--input", "TEXT"], "allowed: .npy, .csv"),
        (["predict", "--input", "FAKE"], "not that of a .npy file"),
        (["health", "--tls-ca", "nowhere.pem"], "nowhere.pem"),
        (["health", "--tls-cert", "TEXT"], "both cert and key"),
    ],
)
def test_misuse_exits_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    """With one line that says what is wrong, or what is allowed."""
    (tmp_path / "notes.txt").write_text("1,2")
    (tmp_path / "fake.npy").write_text("1,2")
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    files = {
        "FILE": npy(tmp_path, ITEM),
        "BOOL": npy(tmp_path, np.array([[True]]), "bool.npy"),
        "INTS": npy(tmp_path, np.array([[1, 2], [3, 4]]), "ints.npy"),
        "WIDE": npy(tmp_path, np.zeros((1, 2, 4), np.float32), "wide.npy"),
        "CSV": csv(tmp_path, "1,2,a\n"),
        "PICKLE": str(tmp_path / "pickle.npy"),
        "TEXT": str(tmp_path / "notes.txt"),
        "FAKE": str(tmp_path / "fake.npy"),
    }
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1")))
    for word, path in files.items():
        arguments = [path if text == word else text.replace(f"={word}", f"={path}") for text in arguments]
    assert cli.run(arguments) == 2
    assert said in complaint(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no numbers"),
        ("1,2,3\n4,5\n", "number of columns changed"),
        ("1,2\n", "1 lines of 2 numbers; 'window' takes 6 per line, or items of [2, 3]"),
        ("1,2,3\n", "1 lines of 3 numbers"),
        ("\x00\xff", "could not convert"),
    ],
)
def test_a_bad_csv_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    """With what is wrong with it."""
    assert cli.run(["predict", "--input", csv(tmp_path, text)]) == 2
    assert said in complaint(capsys)


@pytest.mark.parametrize("command", ["predict", "stream", "health", "models"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command explains itself and the options they share."""
    assert cli.run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: tickring {command}" in out
    for option in ("--target", "--tls-ca", "--tls-cert", "--tls-key", "--token", "--json"):
        assert option in out


def test_a_bug_is_one_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell never sees a traceback."""
    monkeypatch.setattr(cli, "print_models", lambda models: 1 / 0)
    assert cli.run(["models"]) == 1
    assert complaint(capsys) == "tickring: ZeroDivisionError: division by zero\n"


def test_the_command_in_a_shell() -> None:
    """Exit codes 0, 1 and 2 of the process itself, with standard input and nothing but one line on error."""
    done = shell(["predict", "--input", "-", "--json"], b"0,1,2,3,4,5")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["outputs"]["window"] == [ITEM.tolist()]
    failed = shell(["health", "--target", NOBODY])
    assert (failed.returncode, failed.stdout, failed.stderr.count(b"\n")) == (1, b"", 1)
    assert failed.stderr.startswith(b"tickring: UNAVAILABLE: ")
    misused = shell(["helth"])
    assert (misused.returncode, misused.stdout, misused.stderr.count(b"\n")) == (2, b"", 1)
    assert b"health" in misused.stderr
