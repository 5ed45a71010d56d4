"""The forms in which a CPU can compute the bundled model, beside each other: time over that of torch in FP32.

    python -m bench.cpu_forms [--seconds 20] [--batches 1 8 16 32]

In one process and on one thread. The forms take turns, three calls each, the first of which does not count;
a ratio is of two turns that follow each other. Measured is the time of the thread, so that others on the same
core do not count beyond what they do to its caches. glibc's thresholds are raised as in `bare_model`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from bench.bare_model import MALLOC

WARM_UP_CALLS = 10
CALLS = 3


def measure(seconds: float, batches: list[int]) -> None:
    """Prints a line for each batch size and form."""
    from scheduler.executor.onnx_convert import convert
    from scheduler.executor.onnx_runner import OnnxRunner
    from scheduler.executor.runner import DeviceSettings, Runner, load_runner
    from server.repository import load_repository, read_verified
    from server.settings import bundled_repository

    (manifest,) = load_repository(bundled_repository()).manifests
    file, signature = read_verified(manifest.latest), manifest.signature(1)
    forms: dict[str, Runner] = {
        "torch fp32": load_runner("torchscript", file, signature, DeviceSettings()),
        "onnx fp32": OnnxRunner(convert(file, signature), signature, 1),
        "torch bf16": load_runner("torchscript", file, signature, DeviceSettings(precision="bf16")),
    }
    for rows in batches:
        windows = np.random.default_rng(0).standard_normal((rows, 50, 60)).astype(np.float32)
        for form in forms.values():
            for _ in range(WARM_UP_CALLS):
                form.run([windows])
        times: dict[str, list[float]] = {name: [] for name in forms}
        faults = dict.fromkeys(forms, 0)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, form in forms.items():
                before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
                calls = []
                for _ in range(CALLS):
                    started_ns = time.thread_time_ns()
                    form.run([windows])
                    calls.append(time.thread_time_ns() - started_ns)
                times[name].append(sum(calls[1:]) / (CALLS - 1))
                faults[name] += resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
        floor = times["torch fp32"]
        for name, its in times.items():
            ratios = [own / base for own, base in zip(its, floor, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            found = {
                "rows": rows,
                "form": name,
                "us": round(statistics.median(its) / 1000),
                "ratio": round(middle, 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "rounds": len(its),
                "faults_per_call": round(faults[name] / len(its) / CALLS, 2),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32])
    arguments = parser.parse_args()
    if not MALLOC.items() <= os.environ.items():  # read when a process starts
        command = [sys.executable, "-W", "ignore", "-m", "bench.cpu_forms", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, **MALLOC}).returncode)
    measure(arguments.seconds, arguments.batches)
