"""The bare model in a process that stays: the floor between two loads, and the answers that are right."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import bare_model
from bench.bare_model import MALLOC, BareModel

ROWS = 64
BATCHES = [1, 16]

Rows = npt.NDArray[np.float32]


def windows() -> Rows:
    """What is asked for, in turn."""
    return np.random.default_rng(0).standard_normal((ROWS, 50, 60)).astype(np.float32)


class Bare:
    """Idle but when it is asked. Loading torch anew for each floor would take longer than the floor."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.peers.bare"],
            env={**os.environ, **MALLOC},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, seconds: float) -> BareModel:
        """The floor, now; `seconds` for each size of a batch."""
        return BareModel.of(self._ask(seconds))

    def answers(self) -> list[Rows]:
        """Each output of the model, for all of `windows`."""
        return [np.asarray(rows, np.float32) for rows in self._ask(None)]

    def close(self) -> None:
        """It is gone after that."""
        self._process.communicate()

    def _ask(self, question: float | None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _answers() -> list[list[list[float]]]:
    import torch

    model = bare_model.load()
    with torch.inference_mode():
        return [rows.tolist() for rows in model(torch.from_numpy(windows()))]


def _serve() -> None:
    for line in sys.stdin:
        seconds = json.loads(line)
        told: Any = _answers() if seconds is None else bare_model.measure_here(seconds, BATCHES)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    _serve()
