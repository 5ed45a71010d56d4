"""The steps of Dockerfile.gpu without Docker.

Its COPY and RUN lines in other folders, and then what it starts, as it starts it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.deploy.dockerfile import Stage, copy, stages

BUILD, _, RUN = stages()
CONTAINED = Path(__file__).with_name("contained.sh")
USER = 10001
# On free ports of this machine only: the last of two equal options counts.
LOCAL = ("--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0", "--admin-port", "0")
STOP_TIMEOUT_S = 60.0

# Installs everything once more, torch too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Installed:
    """What stands for /wheels and /opt/tickring."""

    wheels: Path
    prefix: Path

    def here(self, text: str) -> str:
        """The text with these folders in the place of the image's."""
        return text.replace("/wheels", str(self.wheels)).replace("/opt/tickring", str(self.prefix))

    @property
    def environment(self) -> dict[str, str]:
        """That of a container, and nothing of the tests'."""
        return {name: self.here(value) for name, value in RUN.environment.items()}

    def words(self, instruction: str) -> list[str]:
        """What ENTRYPOINT or HEALTHCHECK runs."""
        return [self.here(word) for word in RUN.json(instruction)]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What a command in the image says, and its exit code."""
        return subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def written(self) -> dict[str, int]:
        """When each file and folder was last written."""
        return {str(path): path.lstat().st_mtime_ns for path in self.prefix.rglob("*")}


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """Not in pytest's folders: another user has to read it, and a gigabyte is not kept for later."""
    with tempfile.TemporaryDirectory(prefix="tickring-image-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        image = Installed(folder / "built", folder / "installed")
        replay(BUILD, image, folder / "build")
        replay(RUN, image, folder / "run")
        yield image


def replay(stage: Stage, image: Installed, folder: Path) -> None:
    """Does in `folder` what a stage copies from the checkout, and what it runs of our scripts."""
    for instruction, rest in stage.lines:
        if instruction == "COPY" and "--from" not in rest:
            copy(image.here(rest), folder)
        if instruction == "RUN" and "deploy/image" in rest:
            environment = {**os.environ, "PYTHON": sys.executable}
            subprocess.run(["sh", "-c", image.here(rest)], cwd=folder, env=environment, check=True)


def test_arguments_override_the_entry_point(installed: Installed) -> None:
    """As after the image's name; without any it listens on every address."""
    entry_point = installed.words("ENTRYPOINT")
    assert 'host = "0.0.0.0"' in installed.run(*entry_point, "--print-config").stdout
    told = installed.run(*entry_point, "--host", "::1", "--grpc-port", "9001", "--print-config").stdout
    assert 'host = "::1"' in told
    assert "grpc_port = 9001" in told


def test_no_compiler_was_left_behind_and_bytecode_was(installed: Installed) -> None:
    """Nor pip; and nothing is compiled at each start because nothing can be kept."""
    names = {path.name for path in (installed.prefix / "bin").iterdir()}
    assert {"python", "tickring", "tickring-server"} <= names
    assert {"cmake", "ninja", "pip"} & names == set()
    (server,) = installed.prefix.glob("lib/python*/site-packages/server")
    assert {path.stem for path in server.glob("*.py")} == {
        path.name.partition(".")[0] for path in (server / "__pycache__").glob("*.pyc")
    }


def can_contain() -> bool:
    """Whether we may make namespaces of mounts and processes."""
    allowed = ["unshare", "--mount", "--pid", "--fork", "true"]
    return (
        os.geteuid() == 0 and subprocess.run(allowed, stderr=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_serves_as_plain_commands(installed: Installed, tmp_path: Path) -> None:
    """From a folder in which not even root can write, without a home."""
    before = installed.written()
    with serving(installed.words("ENTRYPOINT"), installed.environment | {"HOME": "/nonexistent"}) as service:
        call(installed, service, tmp_path)
        service.stop()
    assert installed.written() == before


@pytest.mark.skipif(not can_contain(), reason="needs root that may make namespaces")
def test_serves_as_process_1_of_a_read_only_system(installed: Installed, tmp_path: Path) -> None:
    """As a user without rights, with Python, the system's libraries and the image's files."""
    inside = ["unshare", "--mount", "sh", str(CONTAINED), str(installed.prefix), sys.base_prefix]
    with serving([*inside, *installed.words("ENTRYPOINT")], installed.environment) as service:
        call(installed, service, tmp_path)

        (supervisor,) = psutil.Process(service.process.pid).children()
        processes = [supervisor, *supervisor.children(recursive=True)]
        assert len(processes) >= 3
        for process in processes:
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            )
            assert status["Uid"].split() == [str(USER)] * 4
            assert int(status["CapEff"], 16) == 0
        assert Path(f"/proc/{supervisor.pid}/status").read_text().split("NSpid:")[1].split()[1] == "1"
        root = Path(f"/proc/{supervisor.pid}/root")
        with pytest.raises(OSError, match="Read-only file system"):
            (root / "made").touch()
        assert list((root / "tmp").iterdir()) == []

        supervisor.send_signal(signal.SIGTERM)
        assert service.wait() == 0


def test_health_check_fails_where_nobody_answers(installed: Installed) -> None:
    """With a line that says whom it asked."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = installed.run(*installed.words("HEALTHCHECK"), TICKRING_SERVER__HTTP_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"healthcheck: localhost:{port}: ")
    assert done.stderr.count("\n") == 1


class Running:
    """A service that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[str], target: str, http_port: str) -> None:
        self.process = process
        self.target = target
        self.http_port = http_port

    def stop(self) -> None:
        """As `docker stop` does; fails unless it ends with 0."""
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0

    def wait(self) -> int:
        """Its exit code."""
        self.process.communicate(timeout=STOP_TIMEOUT_S)
        return self.process.returncode


@contextlib.contextmanager
def serving(command: Sequence[str], environment: dict[str, str]) -> Iterator[Running]:
    """Runs the service until the block ends, at the latest until the tests do."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command, *LOCAL],
        cwd="/proc",
        env=environment | {"TICKRING_TELEMETRY__LOG_FORMAT": "json"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("{") and (ready := json.loads(line))["event"] == "ready":
                yield Running(process, ready["target"], ready["status"].rpartition(":")[2].partition("/")[0])
                break
        else:
            pytest.fail("it ended before it was ready:\n" + "".join(said))
    finally:
        process.kill()
        process.wait()


def call(image: Installed, service: Running, folder: Path) -> None:
    """Asks for its health, as Docker and as a client do, and for a prediction of the bundled model."""
    environment = {"TICKRING_SERVER__HTTP_PORT": service.http_port, "TICKRING_TARGET": service.target}
    checked = image.run(*image.words("HEALTHCHECK"), **environment)
    assert (checked.returncode, checked.stderr) == (0, "")
    health = image.run("tickring", "health", **environment)
    assert (health.returncode, health.stdout.split()) == (0, ["SERVING"]), health.stderr
    np.save(folder / "window.npy", np.zeros((50, 60), dtype=np.float32))
    predicted = image.run(
        *("tickring", "predict", "--json", "--input", f"window={folder / 'window.npy'}"), **environment
    )
    assert predicted.returncode == 0, predicted.stderr
    (probabilities,) = json.loads(predicted.stdout)["outputs"]["classification_probs"]
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
