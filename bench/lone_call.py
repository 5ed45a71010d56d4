"""Where the microseconds of one unloaded request go.

    python -m bench.lone_call [--calls 2000]

One call at a time through our Python client. The stamps in between are those that the service itself
writes: the timing of each response, and the slot's header, read from the server's arena while nothing
else uses it (the slot freed last is used next, so a lone caller always gets the same one). Medians.
"""

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.bare_model import measure
from bench.server_process import ServerProcess
from client import Client
from scheduler.arena import Arena

# Of struct SlotHeader in scheduler/native/layout.hpp.
_HEADER_BYTES = 128
_STAMPS = {"enqueued": 0, "dispatched": 64, "compute_start": 72, "compute_end": 80}
WARM_UP_CALLS = 300


def slot_stamps(server: ServerProcess) -> dict[str, npt.NDArray[np.uint64]]:
    """The stamps of every slot, as live views of the server's arena."""
    assert server.process is not None
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        if "tickring-arena" in os.readlink(link):
            fd = os.open(link, os.O_RDWR)
            break
    else:
        raise LookupError("the server has no arena")
    arena = Arena.attach(fd)
    os.close(fd)
    base = arena.input_rows
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = arena.native.slot_headers
    headers = base[start : start + arena.native.slots * _HEADER_BYTES].reshape(-1, _HEADER_BYTES)
    return {name: headers[:, at : at + 8].view(np.uint64)[:, 0] for name, at in _STAMPS.items()}


async def run(server: ServerProcess, mode: str, calls: int) -> dict[str, float]:
    """Median microseconds by stage, for one mode: unary or stream."""
    stamps = slot_stamps(server)
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    stages: dict[str, list[float]] = {}

    async with Client(server.target) as client:
        predict = client.predict_unary if mode == "unary" else client.predict
        for index in range(WARM_UP_CALLS + calls):
            started = time.perf_counter_ns()
            prediction = await predict({"window": window}, priority="high", timeout_s=10.0)
            took = time.perf_counter_ns() - started
            if index < WARM_UP_CALLS:
                continue
            slot = int(stamps["compute_end"].argmax())
            at = {name: int(column[slot]) for name, column in stamps.items()}
            inside = at["compute_end"] - at["enqueued"]
            for stage, ns in {
                "client and gRPC, both ways": took - prediction.timing.server_ns,
                "check, copy, push; wake-up of the front end, encode": prediction.timing.server_ns - inside,
                "push to take (wake-up of the engine)": at["dispatched"] - at["enqueued"],
                "gather": at["compute_start"] - at["dispatched"],
                "model": at["compute_end"] - at["compute_start"],
                "total": took,
            }.items():
                stages.setdefault(stage, []).append(ns / 1000)
    return {stage: statistics.median(values) for stage, values in stages.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    bare = measure(1.0, (1,)).p50_us[1]
    with ServerProcess() as server:
        unary = asyncio.run(run(server, "unary", calls))
        stream = asyncio.run(run(server, "stream", calls))
    print("| stage, median us | unary | stream |\n|---|---|---|")
    for stage in unary:
        print(f"| {stage} | {unary[stage]:.0f} | {stream[stage]:.0f} |")
    over = {name: stages["total"] - bare for name, stages in (("unary", unary), ("stream", stream))}
    print(f"| over the bare model, {bare:.0f} us | {over['unary']:.0f} | {over['stream']:.0f} |")


if __name__ == "__main__":
    main()
