"""The clients in C++ and Node: built as their READMEs say, and run against real servers."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client import Client
from tests.e2e.calls import windows
from tests.e2e.service import BUNDLED, Service, one_line
from tests.e2e.status import admitted
from tests.test_repo import ROOT
from tests.tools import need, need_tools

BUILD_TIMEOUT_S = 400.0
RUN_TIMEOUT_S = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_TIMEOUT_S + 200)]

# For what must succeed on a machine that others use too.
PATIENT = ("--timeout", "20")
NOBODY = "127.0.0.1:1"
SERVICE_CONFIG = ROOT / "proto" / "tickring" / "v1" / "service_config.json"

Command = Sequence[str]
Outputs = Mapping[str, npt.NDArray[np.float64]]
BOTH = pytest.mark.parametrize("name", ["cpp_client", "node_client"])


def build(command: Command, folder: Path) -> None:
    """Fails with what the command printed, unless it succeeds without a warning of the compiler."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "warning:" not in done.stdout


@pytest.fixture(scope="session")
def cpp_client(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The C++ client, built."""
    need_tools("c++", "cmake", "protoc", "grpc_cpp_plugin")
    headers = ["c++", "-E", "-include", "grpcpp/grpcpp.h", "-x", "c++", os.devnull]
    preprocessed = subprocess.run(headers, capture_output=True, check=False)
    need(preprocessed.returncode == 0, "gRPC's headers for C++")
    folder = tmp_path_factory.mktemp("cpp")
    build(["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", "."], folder)
    build(["cmake", "--build", ".", "-j", str(os.cpu_count())], folder)
    return [str(folder / "tickring_client")]


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The Node client with exactly the packages of its lock file."""
    need_tools("node", "npm")
    folder = tmp_path_factory.mktemp("node") / "examples" / "node"
    ignore = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "examples" / "node", folder, ignore=ignore)
    shutil.copytree(ROOT / "examples" / "protos", folder.parent / "protos")
    shutil.copytree(ROOT / "proto", folder.parents[1] / "proto")
    try:
        build(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
    except AssertionError as error:
        need(re.search("ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN", str(error)) is None, "npm's packages")
        raise
    return ["node", str(folder / "client.js")]


@pytest.fixture
def command(request: pytest.FixtureRequest, name: str) -> Command:
    """The client of this name."""
    found: Command = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Serves the bundled model."""
    service = Service(settings=BUNDLED)
    try:
        service.ready()
        yield service
        service.stop()
    finally:
        service.kill()


@pytest.fixture(scope="module")
def window_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four windows, as bytes; and the first of them alone, beside it."""
    path = tmp_path_factory.mktemp("windows") / "four"
    windows(4).astype("<f4").tofile(path)
    windows(4)[:1].astype("<f4").tofile(path.with_name("one"))
    return path


def run(command: Command, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A client to its end."""
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )


def report(command: Command, *arguments: str | Path) -> dict[str, Any]:
    """What a client says in JSON. Fails unless it ends with 0 and without complaint."""
    done = run(command, *arguments, *PATIENT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def expected(service: Service) -> Outputs:
    """What the Python client gets for the four windows."""

    async def call() -> Outputs:
        async with Client(service.target) as client:
            prediction = await client.predict({"window": windows(4)}, timeout_s=30)
            return {name: array.astype(np.float64) for name, array in prediction.outputs.items()}

    return asyncio.run(call())


def check_outputs(found: Mapping[str, Any], wanted: Outputs, row: int) -> None:
    """Of one row; batches of another size are computed in another order."""
    assert list(found) == list(wanted)
    for output, values in found.items():
        np.testing.assert_allclose(values, wanted[output][row], rtol=1e-4, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("method", ["PredictStream", "Predict"])
def test_cpp_client_gets_the_numbers_of_the_python_client(
    cpp_client: Command, service: Service, window_file: Path, method: str
) -> None:
    """Window by window, over the RPC stream and in calls of their own."""
    unary = ["--unary"] if method == "Predict" else []
    arguments: list[str | Path] = [
        "--target",
        service.target,
        "--window",
        window_file,
        "--count",
        "8",
        "--show",
        "8",
        *unary,
    ]
    found = report(cpp_client, *arguments)
    assert (found["method"], found["ok"]) == (method, 8)
    wanted = expected(service)
    assert [prediction["sequence"] for prediction in found["predictions"]] == list(range(1, 9))
    for prediction in found["predictions"]:
        assert (prediction["model_name"], prediction["model_version"]) == ("sp500_direction", "1")
        outputs = {output["name"]: output["values"] for output in prediction["outputs"]}
        check_outputs(outputs, wanted, (prediction["sequence"] - 1) % 4)
        assert [output["shape"] for output in prediction["outputs"]] == [
            [1, *array.shape[1:]] for array in wanted.values()
        ]


def test_cpp_client_sends_several_windows_in_a_request(
    cpp_client: Command, service: Service, window_file: Path
) -> None:
    """The next ones of the file, from the front again after its end."""
    rows = ["--rows", "3", "--count", "2", "--show", "2"]
    found = report(cpp_client, "--target", service.target, "--window", window_file, *rows)
    wanted = expected(service)["regression_mean"]
    for prediction, picked in zip(found["predictions"], [[0, 1, 2], [3, 0, 1]], strict=True):
        (output,) = (each for each in prediction["outputs"] if each["name"] == "regression_mean")
        assert output["shape"] == [3, 1]
        np.testing.assert_allclose(output["values"], wanted[picked].ravel(), rtol=1e-4, atol=1e-5)


def test_node_client_gets_the_numbers_of_the_python_client(
    node_client: Command, service: Service, window_file: Path
) -> None:
    """From its unary call and from its RPC stream."""
    found = report(
        node_client, "--target", service.target, "--window", window_file.with_name("one"), "--count", "20"
    )
    assert (found["ok"], found["requests"]) == (21, 21)
    assert {name: row["count"] for name, row in found["results"].items()} == {
        "Predict OK": 1,
        "PredictStream OK": 20,
    }
    wanted = expected(service)
    check_outputs(found["Predict"], wanted, 0)
    check_outputs(found["PredictStream"], wanted, 0)


@pytest.mark.parametrize("mode", [[], ["--unary"]])
def test_cpp_client_reports_by_class(cpp_client: Command, service: Service, mode: list[str]) -> None:
    """Classes are taken in turn; quantiles are in order, and every answer is in the histogram once."""
    load = ["--count", "300", "--in-flight", "32", "--priority", "high,normal,low"]
    found = report(cpp_client, "--target", service.target, *load, *mode)
    rows = {row["priority"]: row for row in found["rows"]}
    assert {(name, row["status"], row["count"]) for name, row in rows.items()} == {
        ("real_time_trading", "OK", 100),
        ("batch_processing", "OK", 100),
        ("background_tasks", "OK", 100),
    }
    for row in rows.values():
        quantiles = [row[f"{name}_ms"] for name in ("p50", "p90", "p99", "p999", "max")]
        assert quantiles == sorted(quantiles)
        assert quantiles[0] > 0
    assert sum(bar["count"] for bar in found["histogram"]) == 300


def test_cpp_client_sends_by_the_clock(cpp_client: Command, service: Service) -> None:
    """50 requests at 100 a second take half a second, however fast the answers are."""
    found = report(cpp_client, "--target", service.target, "--count", "50", "--rate", "100")
    assert found["ok"] == 50
    assert found["seconds"] >= 0.49


@BOTH
def test_the_report_for_people_has_all_of_it(command: Command, service: Service) -> None:
    """A prediction, how many were answered, and quantiles."""
    done = run(command, "--target", service.target, "--count", "20", *PATIENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "classification_probs" in done.stdout
    assert " requests answered" in done.stdout
    assert {"p50", "p99", "max"} <= set(done.stdout.split())


@BOTH
def test_a_bad_target_is_one_line_and_exit_code_1(command: Command) -> None:
    """With the status."""
    done = run(command, "--target", NOBODY, "--count", "5")
    assert done.returncode == 1
    assert one_line(r"\S+: (\d) of \1 requests got no prediction; the first: UNAVAILABLE: .+", done.stderr)


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--priority", "urgent"], r"--priority is 'urgent'; allowed: real_time_trading, .*"),
        (["--count", "0"], r"--count is '0'; allowed: 1 to .*"),
        (["--count", "1.5"], r"--count is '1\.5'; must be a whole number"),
        (["--count"], r".*--count.*"),
        (["--timeout", "nan"], r"--timeout is 'nan'; allowed: .*"),
        (["--window", "missing"], r"--window: .*'missing'.*"),
        (["--brew"], r".*'--brew'.*"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    command: Command, service: Service, arguments: list[str], message: str
) -> None:
    """Which names the option."""
    done = run(command, "--target", service.target, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(rf"(tickring_client|client\.js): {message}", done.stderr), done.stderr


@BOTH
def test_a_window_of_a_wrong_size_is_misuse(command: Command, service: Service, tmp_path: Path) -> None:
    """Before anything is sent."""
    (tmp_path / "window").write_bytes(bytes(12_001))
    done = run(command, "--target", service.target, "--window", tmp_path / "window")
    assert done.returncode == 2
    assert one_line(r"\S+: --window: '.*/window' has 12001 bytes; must be .*12000", done.stderr), done.stderr


@BOTH
def test_the_reason_of_a_refusal_is_named(command: Command, service: Service) -> None:
    """From google.rpc's details in a message of the RPC stream."""
    done = run(command, "--target", service.target, "--count", "5", "--timeout", "0.00001")
    assert done.returncode == 1
    assert re.search("DEADLINE_EXCEEDED (DEADLINE_UNREACHABLE|EXPIRED_IN_QUEUE)", done.stdout)


def test_cpp_client_reads_details_of_a_unary_call(cpp_client: Command, service: Service) -> None:
    """From the trailer, for people and for programs."""
    done = run(cpp_client, "--target", service.target, "--model", "nope", "--json")
    assert done.returncode == 1
    assert one_line(r".*; the first: NOT_FOUND MODEL_NOT_FOUND: no model 'nope'; .*", done.stderr)
    failure = json.loads(done.stdout)["first_failure"]
    (info,) = failure["details"]
    assert (failure["code"], info["reason"], info["domain"]) == (5, "MODEL_NOT_FOUND", "tickring")


def test_the_service_config_holds_in_cpp_and_a_death_is_told(cpp_client: Command, service: Service) -> None:
    """Unary calls go to two servers; an RPC stream dies with its server, and the client says so and ends."""
    other = Service(settings=BUNDLED)
    try:
        both = f"ipv4:{service.target},{other.ready().target}"
        before = admitted(service), admitted(other)
        balanced = ["--target", both, "--service-config", str(SERVICE_CONFIG)]
        load = ["--unary", "--count", "200", "--in-flight", "4"]
        assert report(cpp_client, *balanced, *load)["ok"] == 200
        assert admitted(service) - before[0] > 20
        assert admitted(other) - before[1] > 20

        seen = admitted(other)
        endless = [*cpp_client, "--target", other.target, "--count", "1000000", *PATIENT]
        process = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while admitted(other) < seen + 50:
            assert process.poll() is None
        other.signal(signal.SIGKILL)
        _, complaint = process.communicate(timeout=RUN_TIMEOUT_S)
        assert process.returncode == 1
        assert one_line(
            r".*; the first: UNAVAILABLE: the RPC stream ended without an answer: .*", complaint
        ), complaint
    finally:
        other.kill()
