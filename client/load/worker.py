"""One process of the generator: `python -m client.load.worker`, by `generator` only.

On stdin: the load and which part of it, a line `start INSTANT` once everybody is ready, and `stop` where it
is to end early. On stdout, a JSON object a line: ready, how many calls have ended by now, and in the end
what was recorded.
"""

import asyncio
import gc
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvloop

from client.load import recorder
from client.load.flows import Flow, Load, from_json
from client.load.pacing import send_on_time
from client.load.recorder import UNFINISHED, Recorder
from client.load.senders import LEAST_TIMEOUT_S, Call, Sender, sender
from client.load.wire import with_priority
from tickring.v1 import inference_pb2

PROGRESS_EVERY_S = 0.25
# What a caller of a closed loop does after a failure, so that a server that refuses is not hammered.
PAUSE_S = 0.005
# Of the calls before the clock starts, one on each connection.
OPENING_TIMEOUT_S = 30.0


class FlowLoad:
    """The part of a flow that this process has."""

    def __init__(self, load: Load, flow: Flow, in_flight: int) -> None:
        self.flow = flow
        self.in_flight = in_flight
        self.recorder = Recorder(load.duration_s, load.interval_s, flow.timeout_s)
        self.idle = asyncio.Event()  # nothing is out, and nothing more is sent
        self._out = 0
        self._senders: list[Sender] = [
            sender(load.server, flow, self._ended) for _ in range(flow.connections)
        ]
        self._turn = itertools.cycle(self._senders)
        payloads = flow.payloads
        if flow.priority:
            payloads = [with_priority(payload, flow.priority) for payload in payloads]
        self._payloads = itertools.cycle(payloads)
        self._opening: asyncio.Event | None = None
        self._start_s = 0.0
        self._last_s = 0.0
        self._stopped = False

    async def open(self) -> None:
        """Sends one call over each connection, whatever becomes of it."""
        for each in self._senders:
            self._opening = asyncio.Event()
            self._out += 1
            each.send(Call(time.monotonic(), next(self._payloads), OPENING_TIMEOUT_S))
            await asyncio.wait_for(self._opening.wait(), OPENING_TIMEOUT_S + 1)
        self._opening = None

    def start(self, start_s: float, last_s: float) -> None:
        """Instants count from `start_s`; a closed loop sends its first calls, and none after `last_s`."""
        self._start_s, self._last_s = start_s, last_s
        if self.flow.arrivals is None:
            for _ in range(self.in_flight):
                self.send(time.monotonic())

    def send(self, due_s: float) -> None:
        """Sends the call that is due then."""
        now_s = time.monotonic()
        timeout_s = self.flow.timeout_s
        if timeout_s is not None:
            timeout_s = max(LEAST_TIMEOUT_S, due_s + timeout_s - now_s)
        lag_s = None if self.flow.arrivals is None else now_s - due_s
        self.recorder.sent(due_s - self._start_s, lag_s)
        self._out += 1
        next(self._turn).send(Call(due_s, next(self._payloads), timeout_s))

    def stop(self) -> None:
        """Nothing more is sent."""
        self._stopped = True
        self._note_idle()

    async def close(self) -> None:
        """Cancels what is still out, which counts as unfinished. After `stop`."""
        for each in self._senders:
            await each.close()
        ended = sum(self.recorder.record.ends.values())
        if self.recorder.record.offered > ended:
            self.recorder.record.ends[UNFINISHED] = self.recorder.record.offered - ended

    def _ended(self, call: Call, timing: inference_pb2.Timing | None, failure: str) -> None:
        now_s = time.monotonic()
        self._out -= 1
        self._note_idle()
        if self._opening is not None:
            self._opening.set()
            return
        due_s = call.due_s - self._start_s
        if failure:
            self.recorder.failure(due_s, failure)
        else:
            self.recorder.result(due_s, now_s - self._start_s)
            if timing is not None:
                self.recorder.told(
                    due_s, timing.queue_wait_ns / 1e9, timing.compute_ns / 1e9, timing.server_ns / 1e9
                )
        if self.flow.arrivals is None and not self._stopped and now_s < self._last_s:
            if failure:
                asyncio.get_running_loop().call_later(PAUSE_S, self._again)
            else:
                self.send(now_s)

    def _note_idle(self) -> None:
        if self._stopped and not self._out:
            self.idle.set()

    def _again(self) -> None:
        if not self._stopped:
            self.send(time.monotonic())


async def offer(load: Load, index: int, of: int) -> dict[str, Any]:
    """This process's part of the load: what it recorded, and what the process needed."""
    flows = [FlowLoad(load, flow, len(range(index, flow.in_flight, of))) for flow in load.flows]
    for each in flows:
        await each.open()
    _tell(ready=True)
    lines = _Lines()
    word, _, instant = (await lines.next()).partition(" ")
    if word != "start":
        return {"records": [], "cpu": 0.0}
    # A pause of the collector would be a late send, and what lives by now lives to the end.
    gc.collect()
    gc.freeze()

    begin_s = float(instant)
    start_s = begin_s + load.warm_up_s
    end_s = start_s + load.duration_s
    schedule = _schedule(load, flows, index, of, begin_s)
    await asyncio.sleep(max(0.0, begin_s - time.monotonic()))
    used_s = _cpu_s()
    for each in flows:
        each.start(start_s, end_s)
    progress = asyncio.ensure_future(_tell_progress(flows))
    stopped = asyncio.Event()
    listener = asyncio.ensure_future(_listen(lines, stopped))
    sending = asyncio.ensure_future(send_on_time(schedule, lambda due_s, flow: flow.send(due_s), stopped))
    await asyncio.wait([sending, asyncio.ensure_future(_until(end_s, stopped))])
    for each in flows:
        each.stop()
    # The loop's timers are right to the millisecond: who was not stopped has had the whole time.
    sent_s = time.monotonic() if stopped.is_set() else end_s
    cpu = (_cpu_s() - used_s) / (sent_s - begin_s)
    await asyncio.wait([asyncio.ensure_future(each.idle.wait()) for each in flows], timeout=load.linger_s)
    for task in (progress, listener):
        task.cancel()
    for each in flows:
        await each.close()
    return {
        "records": [recorder.to_json(each.recorder.record) for each in flows],
        "cpu": cpu,
        "counted_s": max(0.0, sent_s - start_s),
    }


def _schedule(
    load: Load, flows: list[FlowLoad], index: int, of: int, begin_s: float
) -> Iterator[tuple[float, FlowLoad]]:
    """Every send of the open loops, in order of time."""
    due: list[tuple[float, FlowLoad]] = []
    for number, each in enumerate(flows):
        arrivals = each.flow.arrivals
        if arrivals is not None:
            whole_s = load.warm_up_s + load.duration_s
            instants = arrivals.part(index, of, whole_s, load.seed * 1000 + number)
            due += [(begin_s + at_s, each) for at_s in instants.tolist()]
    due.sort(key=lambda send: send[0])
    return iter(due)


async def _until(end_s: float, stopped: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stopped.wait(), max(0.0, end_s - time.monotonic()))
    except TimeoutError:
        return


async def _listen(lines: "_Lines", stopped: asyncio.Event) -> None:
    """Until it says stop, or nobody is there any more."""
    await lines.next()
    stopped.set()


async def _tell_progress(flows: list[FlowLoad]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        records = [each.recorder.record for each in flows]
        results = sum(record.results for record in records)
        _tell(results=results, failures=sum(record.failures for record in records))


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _Lines:
    """Of stdin, without a thread that would keep the process."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._rest = b""
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read)

    async def next(self) -> str:
        """Empty at the end."""
        return await self._queue.get()

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._queue.put_nowait("")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._queue.put_nowait(line.decode())


def main() -> None:
    """Offers what stdin says."""
    # The parent decides when to end; a Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = json.loads(_first_line())
    _tell(**uvloop.run(offer(from_json(told["load"]), told["index"], told["of"])))


def _first_line() -> bytes:
    """Past Python's own buffers: what comes later is for the loop to read."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1 << 20)
        if not part:
            sys.exit("no load on stdin")
        line += part
    return line


if __name__ == "__main__":
    main()
