"""The floor of the whole service: the bundled model alone, one thread, called in a loop.

    python -m bench.bare_model [--seconds 1.0] [--batches 1 16 32]

In a process of its own with glibc's trim and mmap thresholds raised. As shipped, glibc returns a
batch's buffers to the kernel and faults them in again for the next, which would make any server that
avoids this look better than it is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "models" / "sp500_direction" / "1" / "model.pt"
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
WARM_UP_CALLS = 10


@dataclass(frozen=True)
class BareModel:
    """By batch size."""

    p50_us: dict[int, float]
    windows_per_s: dict[int, float]

    @classmethod
    def of(cls, rows: Mapping[str, Mapping[str, float]]) -> "BareModel":
        """What `measure_here` found, as it comes out of JSON."""
        return cls(
            {int(batch): row["p50_us"] for batch, row in rows.items()},
            {int(batch): row["windows_per_s"] for batch, row in rows.items()},
        )

    @property
    def best_windows_per_s(self) -> float:
        """At whichever batch size is fastest."""
        return max(self.windows_per_s.values())


def measure(seconds: float = 1.0, batches: tuple[int, ...] = (1, 16, 32)) -> BareModel:
    """Runs the floor in a fresh process, `seconds` per batch size."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.bare_model", "--seconds", str(seconds)]
    command += ["--batches", *map(str, batches)]
    printed = subprocess.run(command, env={**os.environ, **MALLOC}, check=True, stdout=subprocess.PIPE)
    rows = json.loads(printed.stdout)
    return BareModel.of(rows)


def load(path: str | Path = FILE) -> Any:
    """A TorchScript file, computed by one thread. Servers of peers call it, in environments of their own."""
    import torch

    torch.set_num_threads(1)
    return torch.jit.load(path).eval()  # type: ignore[no-untyped-call]


def measure_here(seconds: float, batches: list[int]) -> dict[int, dict[str, float]]:
    """The same in this process, which loads torch: by batch size, as in `BareModel`."""
    import torch

    model = load()
    rows = {}
    with torch.inference_mode():
        for batch in batches:
            windows = torch.randn(batch, 50, 60)
            for _ in range(WARM_UP_CALLS):
                model(windows)
            times = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                started = time.perf_counter()
                model(windows)
                times.append(time.perf_counter() - started)
            rows[batch] = {
                "p50_us": statistics.median(times) * 1e6,
                "windows_per_s": batch * len(times) / sum(times),
            }
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    arguments = parser.parse_args()
    print(json.dumps(measure_here(arguments.seconds, arguments.batches)))
