"""NVIDIA's own client, unmodified, in a process and an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.e2e.service import Service

HERE = Path(__file__).parent
INSTALL_TIMEOUT_S = 300.0
CALLS_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def triton_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with tritonclient."""
    folder = tmp_path_factory.mktemp("triton") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*install, "-r", HERE / "triton_requirements.txt"],
        check=True,
        timeout=INSTALL_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    return python


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_TIMEOUT_S + CALLS_TIMEOUT_S)
def test_every_method_of_tritonclient(triton_python: Path, bundled: Service) -> None:
    """grpc and grpc.aio, with streams; what each call printed is shown with -s."""
    done = subprocess.run(
        [triton_python, HERE / "triton_calls.py", bundled.target],
        capture_output=True,
        text=True,
        timeout=CALLS_TIMEOUT_S,
        check=False,
    )
    print(done.stdout, file=sys.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all as expected\n")
