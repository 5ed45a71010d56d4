"""Lane push and take, native, against the same bytes in private memory."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.conftest import Gate

NATIVE = Path(__file__).resolve().parents[1] / "scheduler" / "native"


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    binary = tmp_path_factory.mktemp("lanes") / "lanes"
    source = Path(__file__).with_name("lanes.cpp")
    subprocess.run(["g++", "-O2", "-std=c++17", f"-I{NATIVE}", str(source), "-o", str(binary)], check=True)
    runs = [json.loads(subprocess.check_output([str(binary)])) for _ in range(3)]
    return {name: min(run[name] for run in runs) for name in runs[0]}


def test_push(gate: Gate, lanes: dict[str, float]) -> None:
    """One item into a lane, doorbell and gate included."""
    gate.check("lane_push", (lanes["push_ns"], lanes["floor_write_ns"]))


def test_take(gate: Gate, lanes: dict[str, float]) -> None:
    """One of 32 items merged from five lanes in key order."""
    gate.check("lane_take", (lanes["take_ns"], lanes["floor_read_ns"]))


def test_complete_and_drain(gate: Gate, lanes: dict[str, float]) -> None:
    """One item back to its front end and out of the completion ring."""
    floor = lanes["floor_write_ns"] + lanes["floor_read_ns"]
    gate.check("complete_and_drain", (lanes["complete_and_drain_ns"], floor))
