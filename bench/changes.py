"""What changes cost those who call meanwhile: models reloaded and settings changed under a steady load.

    python -m bench.changes [--reloads 500] [--settings 500] [--block 25] [--rate 100]

One server, and two load processes that call at a steady rate, one unary, one over an RPC stream. Quiet time
and blocks of changes take turns, so that a machine whose speed drifts drifts for both. Each reload is a new
version of the bundled model on disk and a LoadModel, after which the version before is gone; changes of
settings are of one that takes effect at once. Questions: does any call fail, how much higher is p99 while
changes are made, and does memory grow?

Exits with 1 when a bound does not hold.
"""

import argparse
import asyncio
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.report import Check, ms, print_checks, print_table, quantile
from bench.server_process import ServerProcess
from bench.steady import Steady, SteadyResult
from client.admin import AdminClient
from server.settings import bundled_repository

MODEL = "sp500_direction"
QUIET_S = 8.0
# After each change of settings. Some twenty a second: enough calls are sent meanwhile for a p99.
PAUSE_S = 0.04
# Of p99 while changes are made, beside p99 without.
P99_BAR = 1.5
# Of the memory that all processes have for themselves, after the last block beside that after the first.
MEMORY_BAR = 1.10


class Versions:
    """A repository of one model whose newest version is the only one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._model = folder / MODEL
        shutil.copytree(bundled_repository() / MODEL, self._model)
        file = self._model / "1" / "model.pt"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        text = (self._model / "model.toml").read_text()
        self._head, self._tail = text.split("[versions.1]")
        assert digest in self._tail
        self._number = 1

    def publish(self) -> int:
        """Puts the next version in the place of the newest, the way a careful deployment does."""
        old, self._number = self._number, self._number + 1
        (self._model / str(old)).rename(self._model / str(self._number))
        manifest = self._model / "model.toml.new"
        manifest.write_text(f"{self._head}[versions.{self._number}]{self._tail}")
        manifest.rename(self._model / "model.toml")
        return self._number


@dataclass
class Phase:
    """Spans of one kind."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)  # how long each took, s

    def latencies(self, load: SteadyResult) -> list[float]:
        """Of the calls that were sent in them."""
        return [latency for start, end in self.spans for latency in load.between(start, end)]


def memory_bytes(server: ServerProcess) -> int:
    """What the server and its children have for themselves: without the arena and what libraries share."""
    assert server.process is not None
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_full_info().uss for process in (parent, *parent.children()))


async def _block(phase: Phase, changes: int, change: Callable[[], Awaitable[None]]) -> None:
    started = time.monotonic()
    for _ in range(changes):
        begun = time.monotonic()
        await change()
        phase.changes.append(time.monotonic() - begun)
    phase.spans.append((started, time.monotonic()))


async def _measure(
    server: ServerProcess, versions: Versions, arguments: argparse.Namespace
) -> tuple[dict[str, Phase], list[int]]:
    phases = {name: Phase() for name in ("quiet", "reloads", "settings")}
    memory: list[int] = []
    budgets = [8.0, 10.0]
    left = {"reloads": arguments.reloads, "settings": arguments.settings}

    async with AdminClient(f"127.0.0.1:{server.admin_port}") as admin:

        async def reload() -> None:
            number = versions.publish()
            await admin.load_model(MODEL, timeout_s=120)
            assert number  # it is the newest, which LoadModel has just answered for

        async def change_settings() -> None:
            budgets.reverse()
            await admin.update_settings({"scheduler.latency_budget_ms": str(budgets[0])})
            await asyncio.sleep(PAUSE_S)

        while any(left.values()):
            started = time.monotonic()
            await asyncio.sleep(QUIET_S)
            phases["quiet"].spans.append((started, time.monotonic()))
            for name, change in (("reloads", reload), ("settings", change_settings)):
                count = min(arguments.block, left[name])
                left[name] -= count
                if count:
                    await _block(phases[name], count, change)
            await asyncio.sleep(1.0)  # the last engine to retire has
            memory.append(memory_bytes(server))
            print(
                f"{arguments.reloads - left['reloads']} reloads, {arguments.settings - left['settings']} "
                f"changes of settings, {memory[-1] / 1e6:.0f} MB",
                flush=True,
            )
    return phases, memory


def main() -> int:
    """Prints tables and checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reloads", type=int, default=500)
    parser.add_argument("--settings", type=int, default=500)
    parser.add_argument("--block", type=int, default=25, help="changes of a kind between two quiet times")
    parser.add_argument("--rate", type=float, default=100.0, help="calls per second of each load")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tickring-bench-") as folder:
        versions = Versions(Path(folder))
        with ServerProcess({}, ("--models", folder)) as server:
            loads = {
                "unary": Steady(server.target, arguments.rate, stream=False),
                "stream": Steady(server.target, arguments.rate, stream=True),
            }
            for load in loads.values():
                load.start()
            phases, memory = asyncio.run(_measure(server, versions, arguments))
            results = {name: load.stop() for name, load in loads.items()}
    checks = []
    rows = []
    for name, result in results.items():
        quiet = quantile(phases["quiet"].latencies(result), 0.99)
        for phase_name, phase in phases.items():
            found = phase.latencies(result)
            p99 = quantile(found, 0.99)
            rows.append(
                [
                    name,
                    phase_name,
                    str(len(phase.changes)),
                    ms(1e3 * quantile(phase.changes, 0.5)),
                    str(len(found)),
                    ms(quantile(found, 0.5)),
                    ms(p99),
                    ms(max(found, default=float("nan"))),
                ]
            )
            if phase.changes:
                checks.append(
                    Check(f"{name}: p99 during {phase_name} beside quiet", p99 / quiet, P99_BAR, "x")
                )
        checks.append(Check(f"{name}: failed calls", sum(result.failures.values()), 0, "calls"))
        if result.failures:
            print(f"{name}: {json.dumps(result.failures, indent=2)}")
    checks.append(Check("memory, last block beside first", memory[-1] / memory[0], MEMORY_BAR, "x"))
    header = ["load", "while", "changes", "each and pause, ms", "calls", "p50, ms", "p99, ms", "longest, ms"]
    print_table(header, rows)
    return print_checks(checks)


if __name__ == "__main__":
    sys.exit(main())
