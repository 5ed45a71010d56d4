"""The service part: the whole server over gRPC on this host, by number of front ends, unary and streams.

The load comes from several processes of our own Python client, which need more of the machine than the
server does. `--loadgen` names a lighter generator instead: a program that takes `--target --method --request
--mode unary|stream --n --concurrency` and prints JSON with `rps`, `p50_us` and `p99_us`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.gpu_models import BUNDLED
from bench.gpu_results import Budget, Results, Row, best
from bench.report import Check, quantile
from bench.server_process import ServerProcess
from tickring.v1 import inference_pb2, types_pb2

PART = "service"
FRONTENDS = (1, 2, 4, 8, 12)
MODES = ("unary", "stream")
ROWS = (1, 8)
IN_FLIGHT = 32  # of one client process
SECONDS = 4.0
READY_S = 60.0
# A start, its warm-up and its four loads.
SERVER_S = 60.0
BARS = {"unary": 60_000.0, "stream": 150_000.0}
METHODS = {"unary": "Predict", "stream": "PredictStream"}
# A short run first, to know how many calls make `SECONDS`.
PROBE_CALLS = 2000


@dataclass(frozen=True)
class Served:
    """Of all clients together. Quantiles are the callers'; of several generators the worst one's."""

    calls_per_s: float
    p50_us: float
    p99_us: float
    failed: int


def measure(
    results: Results,
    device: str,
    budget: Budget,
    *,
    loadgen: Path | None,
    precision: str = "fp16",
    frontends: Sequence[int] = FRONTENDS,
    seconds: float = SECONDS,
) -> int:
    """Prints its table and checks; 1 where a bar does not hold."""
    for count in frontends:
        if not budget.allows(SERVER_S):
            results.note(PART, f"not measured for want of time: {count} front ends")
            continue
        settings = {
            "TICKRING_SERVER__FRONTENDS": str(count),
            "TICKRING_EXECUTOR__PRECISION": precision,
        }
        try:
            with ServerProcess(settings, ("--device", device)) as server:
                for mode in MODES:
                    for rows in ROWS:
                        _load(results, server.target, count, mode, rows, precision, loadgen, seconds)
        except (RuntimeError, subprocess.SubprocessError, OSError) as error:
            results.note(PART, f"{count} front ends: {error}")
    results.show(PART)
    if loadgen is None:
        results.note(
            PART, "the load is a Python client's: these are bounds from below of what the server does"
        )
    return results.check(PART, *bars(results.rows(PART)))


def bars(rows: Sequence[Row]) -> list[Check]:
    """Windows per second, whatever number of front ends is best; one window per request."""
    checks = []
    for mode, bound in BARS.items():
        row = best(
            [row for row in rows if (row["mode"], row["rows"]) == (mode, 1)], "windows_per_s", smallest=False
        )
        if row is not None:
            name = f"{mode}, one window per request ({row['front ends']} front ends)"
            checks.append(Check(name, row["windows_per_s"], bound, "windows/s", at_most=False))
    return checks


def _load(
    results: Results,
    target: str,
    frontends: int,
    mode: str,
    rows: int,
    precision: str,
    loadgen: Path | None,
    seconds: float,
) -> None:
    # SO_REUSEPORT spreads connections, not calls: several of them for each front end.
    cores = len(os.sched_getaffinity(0))
    if loadgen is None:
        clients = max(1, cores - frontends - 1)
        served = by_clients(target, mode, rows, clients, seconds)
    else:
        clients = 2 * frontends
        served = by_generator(loadgen, target, mode, rows, clients, seconds)
    results.add(
        PART,
        {
            "front ends": frontends,
            "mode": mode,
            "rows": rows,
            "precision": precision,
            "load": f"{clients} x {'our client' if loadgen is None else loadgen.name}",
            "windows_per_s": served.calls_per_s * rows,
            "p50_us": served.p50_us,
            "p99_us": served.p99_us,
            "failed": served.failed,
        },
    )


def by_clients(target: str, mode: str, rows: int, clients: int, seconds: float) -> Served:
    """Processes of our own client, all within the same seconds."""
    with tempfile.TemporaryDirectory(prefix="tickring-bench-") as folder:
        files = [Path(folder) / f"{index}.npy" for index in range(clients)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.gpu_load", target, mode, str(IN_FLIGHT), str(rows), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for file in files
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError("a load process could not reach the server")
            start = f"{time.monotonic() + 0.5} {seconds}\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(start)
                process.stdin.flush()
            failed = [int(process.communicate(timeout=seconds + READY_S)[0]) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
        latencies = np.concatenate([np.load(file) for file in files])
    return Served(
        len(latencies) / seconds,
        quantile(latencies.tolist(), 0.5),
        quantile(latencies.tolist(), 0.99),
        sum(failed),
    )


def by_generator(program: Path, target: str, mode: str, rows: int, clients: int, seconds: float) -> Served:
    """Processes of a generator, each with a connection of its own.

    The rate is what all of them did, over the time from the first one's start to the last one's end.
    """
    with tempfile.TemporaryDirectory(prefix="tickring-bench-") as folder:
        request = Path(folder) / "request.bin"
        request.write_bytes(request_bytes(mode, rows))
        command = [
            str(program),
            *("--target", target, "--method", f"/tickring.v1.InferenceService/{METHODS[mode]}"),
            *("--request", str(request), "--mode", mode, "--concurrency", str(IN_FLIGHT)),
        ]
        probe = _together(command, clients, PROBE_CALLS)
        calls = max(PROBE_CALLS, int(probe.calls_per_s * seconds / clients))
        return _together(command, clients, calls)


def _together(command: Sequence[str], clients: int, calls: int) -> Served:
    started = time.monotonic()
    processes = [
        subprocess.Popen([*command, "--n", str(calls)], stdout=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    printed = [json.loads(process.communicate(timeout=READY_S)[0]) for process in processes]
    took_s = time.monotonic() - started
    answered = [int(each.get("ok", calls)) for each in printed]
    return Served(
        sum(answered) / took_s,
        max(each["p50_us"] for each in printed),
        max(each["p99_us"] for each in printed),
        clients * calls - sum(answered),
    )


def request_bytes(mode: str, rows: int) -> bytes:
    """A request to the bundled model, serialised; as a message of an RPC stream if so asked."""
    windows = np.random.default_rng(0).standard_normal((rows, 50, 60)).astype(np.float32)
    request = inference_pb2.PredictRequest(
        model_name=BUNDLED,
        inputs=[
            types_pb2.Tensor(
                name="window",
                data_type=types_pb2.DATA_TYPE_FP32,
                shape=windows.shape,
                data=windows.tobytes(),
            )
        ],
    )
    if mode == "stream":
        return inference_pb2.PredictStreamRequest(sequence=1, request=request).SerializeToString()
    return request.SerializeToString()
