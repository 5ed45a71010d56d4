"""Builds the ring's own tests, plain and under the sanitizers, and runs them."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[3] / "scheduler" / "native"
COMPILER = os.environ.get("CXX", "g++")
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion"]
BUILDS = {
    "plain": ["-O2"],
    "tsan": ["-O1", "-g", "-fsanitize=thread"],
    "asan-ubsan": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
TIMEOUT_S = 100
# What TSan says where the kernel randomises addresses further than it can follow.
TSAN_LAYOUT = "unexpected memory mapping"


def run(*command: str | Path) -> tuple[int, str]:
    """Exit status and output; a program that hangs is a failure with what it printed so far."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout
        pytest.fail(f"still running after {TIMEOUT_S} s:\n{printed}")
    return done.returncode, done.stdout


def require_runtime(flags: list[str], folder: Path) -> None:
    """Skips where this compiler has no runtime for a sanitizer; without one everything is required."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    status, output = run(COMPILER, *flags, source, "-o", folder / "empty")
    if status != 0 and any(flag.startswith("-fsanitize") for flag in flags):
        pytest.skip(f"{COMPILER} cannot link {flags}: {output.strip().splitlines()[-1]}")


@pytest.mark.parametrize("build", BUILDS)
def test_ring_keeps_its_promises(build: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Order, bounds, wake-ups, hand-over between threads, processes killed at every point."""
    folder = tmp_path_factory.mktemp(build)
    require_runtime(BUILDS[build], folder)
    program = folder / "ring_test"
    status, output = run(
        COMPILER, "-std=c++17", "-pthread", *WARNINGS, *BUILDS[build], NATIVE / "ring_test.cpp", "-o", program
    )
    assert status == 0, output
    status, output = run(program)
    if TSAN_LAYOUT in output and (setarch := shutil.which("setarch")):
        status, output = run(setarch, platform.machine(), "--addr-no-randomize", program)
    assert status == 0, output
    assert "FAILED" not in output
    assert output.count("ok ") == (NATIVE / "ring_test.cpp").read_text().count("    TEST("), output
