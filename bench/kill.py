"""kill -9 of each process under load: does every call end with a status, and how long until the next success?

    python -m bench.kill [--rounds 20] [--role frontend|engine|supervisor|all]

The load is a second process: callers in a closed loop, unary and on RPC streams, without retries. A
killed supervisor takes its children along; something outside has to start the service again (here:
this script, at once, as an init system would), and the time until the next success includes that.
"""

import argparse
import asyncio
import collections
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

from bench.server_process import ServerProcess
from client import Client, PredictionError, RetryPolicy

UNARY_CALLERS = 12
STREAM_CALLERS = 12
TIMEOUT_S = 5.0
# A call that has not ended this long after its own timeout hangs.
HANG_S = 3.0
# What a caller does after a failure, so that a dead server is not hammered.
PAUSE_S = 0.02
RECOVERY_TIMEOUT_S = 60.0


@dataclass
class Load:
    """The calls of the load process, as it reports them: when each ended, and how."""

    process: subprocess.Popen[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: list[tuple[float, float, str]] = field(default_factory=list)  # ended, took, status; seconds

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            ended, took, status = line.split()
            with self.lock:
                self.calls.append((float(ended), float(took), status))

    def since(self, instant: float) -> list[tuple[float, float, str]]:
        """Calls that ended after `instant`, CLOCK_MONOTONIC."""
        with self.lock:
            return [call for call in self.calls if call[0] > instant]


async def generate(target: str) -> None:
    """The load process: calls until its stdin is closed, one line per call."""
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, stop.set)

    async def caller(client: Client, *, unary: bool) -> None:
        call = client.predict_unary if unary else client.predict
        while not stop.is_set():
            started = time.monotonic()
            try:
                async with asyncio.timeout(TIMEOUT_S + HANG_S):
                    await call({"window": window}, priority="high", timeout_s=TIMEOUT_S)
                status = "OK"
            except PredictionError as error:
                status = error.code.name
            except TimeoutError:
                status = "HANG"
            ended = time.monotonic()
            print(f"{ended:.6f} {ended - started:.6f} {status}", flush=True)
            if status != "OK":
                await asyncio.sleep(PAUSE_S)

    no_retries = RetryPolicy(attempts=1)
    async with Client(target, retries=no_retries) as one, Client(target, retries=no_retries) as two:
        callers = [caller(one, unary=True) for _ in range(UNARY_CALLERS)]
        callers += [caller(two, unary=False) for _ in range(STREAM_CALLERS)]
        await asyncio.gather(*callers)


def start_load(target: str) -> Load:
    """Spawns the load process and reads its reports in the background."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.kill", "--generate", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    load = Load(process)
    threading.Thread(target=load.read, daemon=True).start()
    return load


def stop_load(load: Load) -> None:
    """Lets the calls that are out end, then the process."""
    assert load.process.stdin is not None
    load.process.stdin.close()
    load.process.wait(TIMEOUT_S + 2 * HANG_S)


def await_success(load: Load, after: float, timeout_s: float = RECOVERY_TIMEOUT_S) -> float:
    """When the first call that *started* after `after` succeeded."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for ended, took, status in load.since(after):
            if status == "OK" and ended - took > after:
                return ended
        time.sleep(0.005)
    raise TimeoutError(f"no success within {timeout_s} s")


@dataclass
class Result:
    """What `rounds` kills of one role did."""

    role: str
    recovery_s: list[float] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest_failure_s: float = 0.0

    @property
    def hung(self) -> int:
        """Calls that never ended."""
        return self.statuses["HANG"]


def kill_rounds(role: str, rounds: int) -> Result:
    """Kills one process of the server `rounds` times under load."""
    result = Result(role)
    server = ServerProcess()
    server.start()
    load = start_load(server.target)
    try:
        await_success(load, time.monotonic())
        for _ in range(rounds):
            assert server.process is not None
            pid = server.process.pid if role == "supervisor" else server.child(role).pid
            children = psutil.Process(server.process.pid).children()
            killed = time.monotonic()
            psutil.Process(pid).send_signal(signal.SIGKILL)
            if role == "supervisor":
                server.process.wait()
                psutil.wait_procs(children, timeout=10)
                server.start()
            recovered = await_success(load, killed)
            result.recovery_s.append(recovered - killed)
            # Steady again before the next round: every process up, all calls of this round accounted for.
            await_success(load, time.monotonic() + 0.5)
            for ended, took, status in load.since(killed):
                result.statuses[status] += 1
                if status != "OK" and ended - took < killed:
                    result.slowest_failure_s = max(result.slowest_failure_s, ended - killed)
    finally:
        stop_load(load)
        server.stop()
    return result


def main() -> int:
    """Prints a table; exit code 1 when a call hung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--role", default="all", choices=["frontend", "engine", "supervisor", "all"])
    parser.add_argument("--json", action="store_true", help="one JSON object per role instead of the table")
    parser.add_argument("--generate", metavar="TARGET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        asyncio.run(generate(arguments.generate))
        return 0
    roles = ["frontend", "engine", "supervisor"] if arguments.role == "all" else [arguments.role]
    if not arguments.json:
        print(
            f"| killed, {arguments.rounds} times | calls by status | last of the cut-off calls ended after "
            "| next success after: median (max) |\n|---|---|---|---|"
        )
    hung = 0
    for role in roles:
        result = kill_rounds(role, arguments.rounds)
        hung += result.hung
        print(json.dumps(vars(result)) if arguments.json else table_row(result), flush=True)
    return 1 if hung else 0


def table_row(result: Result) -> str:
    """One row of the table."""
    statuses = ", ".join(f"{name} {count}" for name, count in sorted(result.statuses.items()))
    recovery = f"{statistics.median(result.recovery_s):.2f} s ({max(result.recovery_s):.2f} s)"
    return f"| {result.role} | {statuses} | {result.slowest_failure_s:.2f} s | {recovery} |"


if __name__ == "__main__":
    sys.exit(main())
