"""The floor part: what launching and waiting cost, before any model computes (docs/gpu.md, "Towards 40 µs").

A ping-pong: the host launches a graph, waits until it knows that it has run, and launches again.
"""

import mmap
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.gpu_models import BUNDLED, model_file
from bench.gpu_results import Budget, Results
from bench.report import quantile
from scheduler.executor.cuda_calls import NotMapped
from scheduler.executor.torch_cuda import TorchCuda, TorchStream

PART = "floor"
ROUNDS = 5000
ROUNDS_QUICK = 500
SETTLING_ROUNDS = 200
# A flag that does not come within this: the graph has failed.
FLAG_TIMEOUT_S = 5.0
ROWS = 1024
# Memory that was registered with the driver stays for the life of the process.
_REGISTERED: list[Any] = []


def measure(results: Results, device: str, budget: Budget, *, quick: bool) -> int:
    """Prints its table; 0, for there is no bar."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    for name, spin in (("block", False), ("spin", True)):
        if not budget.allows(20.0):
            results.note(PART, "cut off for want of time")
            break
        bench = _PingPong(device, spin=spin)
        for what, work in bench.works():
            _row(results, what, name, bench, bench.event_round(work), rounds)
        if spin:
            _flagged(results, bench, rounds)
    results.show(PART)
    return 0


class _PingPong:
    """Graphs on one stream, and what they read and write."""

    def __init__(self, device: str, *, spin: bool) -> None:
        self._calls = TorchCuda(device, spin=spin)
        self._stream: TorchStream = self._calls.stream(urgent=False)
        signature = model_file(BUNDLED).signature
        self._row_bytes, self._out_bytes = signature.input_row_bytes, signature.output_row_bytes
        uint8, int64 = np.dtype(np.uint8), np.dtype(np.int64)
        with self._calls.on(self._stream):
            self._cell = self._calls.device((1,), int64)
            self._device_row = self._calls.device((1, self._row_bytes), uint8)
            self._device_out = self._calls.device((1, self._out_bytes), uint8)
            self._index = self._calls.device((1,), int64)
        self._host_row = self._calls.host((1, self._row_bytes), uint8)
        self._host_out = self._calls.host((1, self._out_bytes), uint8)
        self._host_index = self._calls.host((1,), int64)
        self._calls.finish(self._stream)
        self._graphs: list[Any] = []  # the pool of the stream lives as long as a graph of it does

    def works(self) -> list[tuple[str, Callable[[], None]]]:
        """What is launched, from nothing to everything but a model."""
        calls = self._calls

        def empty() -> None:
            self._cell.fill_(1)

        def staged() -> None:
            calls.copy(self._device_row, self._host_row.tensor)
            calls.copy(self._host_out.tensor, self._device_out)

        found = [("empty kernel", empty), ("staged copies, in and out", staged)]
        slab = self._mapped(ROWS, self._row_bytes)[1]
        if slab is not None:

            def mapped() -> None:
                calls.copy(self._index, self._host_index.tensor)
                calls.select_rows(slab, 0, self._index, self._device_row)

            def mapped_and_out() -> None:
                mapped()
                calls.copy(self._host_out.tensor, self._device_out)

            found += [("mapped feed", mapped), ("mapped feed, copy out", mapped_and_out)]
        return found

    def event_round(self, work: Callable[[], None]) -> Callable[[], None]:
        """Launches the work as a graph and waits for the stream's event."""
        graph = self._capture(work)

        def once() -> None:
            graph.replay()
            self._calls.finish(self._stream)

        return once

    def flag_round(self) -> Callable[[], None] | None:
        """The same with an empty kernel whose end is seen in mapped memory; None where that cannot be had."""
        memory, tensor = self._mapped(1, mmap.PAGESIZE)
        if tensor is None:
            return None
        word = memoryview(memory)
        # Two graphs that take turns, so that each writes what is not there yet.
        graphs = [self._capture(partial(tensor[:, :1].fill_, value)) for value in (1, 2)]
        turn = 0

        def once() -> None:
            nonlocal turn
            value = turn + 1
            graphs[turn].replay()
            until = time.monotonic() + FLAG_TIMEOUT_S
            spins = 0
            while word[0] != value:
                spins += 1
                if spins % 100_000 == 0 and time.monotonic() > until:
                    raise TimeoutError("the device has not written its flag")
            turn = 1 - turn

        return once

    def on(self) -> Any:
        """The stream."""
        return self._calls.on(self._stream)

    def _mapped(self, rows: int, row_bytes: int) -> tuple[mmap.mmap, Any]:
        """Pages of their own, and a tensor over them; None for that where it cannot be had."""
        memory = mmap.mmap(-1, rows * row_bytes)
        _REGISTERED.append(memory)
        try:
            array = np.frombuffer(memory, np.uint8).reshape(rows, row_bytes)
            return memory, self._calls.mapped(array)
        except NotMapped:
            return memory, None

    def _capture(self, work: Callable[[], Any]) -> Any:
        with self._calls.on(self._stream):
            work()  # kernels are loaded at their first launch, which no capture may see
            self._calls.finish(self._stream)
        graph, _ = self._calls.capture(self._stream, work)
        self._graphs.append(graph)
        return graph


def _flagged(results: Results, bench: _PingPong, rounds: int) -> None:
    once = bench.flag_round()
    if once is None:
        results.note(PART, "flag in mapped memory: not available")
    else:
        _row(results, "empty kernel", "flag in mapped memory", bench, once, rounds)


def _row(
    results: Results, what: str, wait: str, bench: _PingPong, once: Callable[[], None], rounds: int
) -> None:
    us = []
    with bench.on():
        for turn in range(SETTLING_ROUNDS + rounds):
            started_ns = time.perf_counter_ns()
            once()
            if turn >= SETTLING_ROUNDS:
                us.append((time.perf_counter_ns() - started_ns) / 1e3)
    results.add(
        PART,
        {
            "work": what,
            "wait": wait,
            "p50_us": quantile(us, 0.5),
            "p99_us": quantile(us, 0.99),
            "max_us": max(us),
            "rounds": rounds,
        },
    )
