"""Offers a load with several processes, and says whether they kept up."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from client.load import recorder
from client.load.errors import LoadFailed, TooSlow
from client.load.flows import Flow, Load, to_json
from client.load.recorder import Record

# A generator whose sends were later than this, one in a hundred or more, has not offered what it says.
MAX_LAG_MS = 10.0
# So busy it cannot have seen answers when they came.
MAX_CPU = 0.95
# Between the word and the first send: every process must have heard it.
START_DELAY_S = 0.1
OPENING_S = 90.0
END_S = 30.0
_WORKER = (sys.executable, "-m", "client.load.worker")

Progress = Callable[[float, int, int], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How the generator did. Lags are None where every loop was closed; `cpu`: cores, of each process."""

    processes: int
    lag_p50_ms: float | None
    lag_p99_ms: float | None
    lag_max_ms: float | None
    cpu: Sequence[float]

    def check(self, max_lag_ms: float, max_cpu: float) -> None:
        """Raises `TooSlow`."""
        advice = "give it more --processes or --connections, another machine, or less to do"
        if self.lag_p99_ms is not None and self.lag_p99_ms > max_lag_ms:
            raise TooSlow(
                f"the generator fell behind: one send in a hundred was {self.lag_p99_ms:.1f} ms late, "
                f"allowed are {max_lag_ms:g} ms; {advice}"
            )
        if max(self.cpu) > max_cpu:
            raise TooSlow(
                f"the generator was the limit: one of its processes used {max(self.cpu):.0%} of a core, "
                f"allowed are {max_cpu:.0%}; {advice}"
            )


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a load; `records` in the order of `flows`. `counted_s` is less than asked for where it
    was `interrupted`.
    """

    flows: Sequence[Flow]
    records: Sequence[Record]
    counted_s: float
    interrupted: bool
    pace: Pace

    def per_s(self, record: Record) -> float:
        """Answers per second."""
        return record.results / self.counted_s if self.counted_s else 0.0

    def goodput_per_s(self, record: Record) -> float:
        """Answers within their timeout, per second."""
        return record.in_time / self.counted_s if self.counted_s else 0.0


def run(
    load: Load,
    processes: int = 1,
    *,
    on_progress: Progress = lambda _elapsed_s, _results, _failures: None,
    max_lag_ms: float = MAX_LAG_MS,
    max_cpu: float = MAX_CPU,
) -> LoadResult:
    """Blocks until the load is over. A KeyboardInterrupt ends it early, and what was seen so far counts.

    Raises:
        TooSlow: the generator could not keep up.
        LoadFailed: a process of it broke.
    """
    with _Workers(load, processes) as workers:
        workers.start()
        interrupted = False
        while (message := workers.next(interrupted)) is not None:
            if message == "interrupt":
                interrupted = True
                continue
            on_progress(*workers.progress())
        told = workers.results()
    records = [
        recorder.add_up([recorder.from_json(each["records"][number]) for each in told])
        for number in range(len(load.flows))
    ]
    lag = recorder.histogram()
    for record in records:
        lag.add(record.histograms["lag"])
    pace = Pace(
        processes,
        recorder.quantile_ms(lag, 0.5),
        recorder.quantile_ms(lag, 0.99),
        recorder.quantile_ms(lag, 1.0),
        [each["cpu"] for each in told],
    )
    pace.check(max_lag_ms, max_cpu)
    return LoadResult(load.flows, records, max(each["counted_s"] for each in told), interrupted, pace)


class _Workers:
    """The processes of one load."""

    def __init__(self, load: Load, count: int) -> None:
        self._load = load
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._done: dict[int, dict[str, Any]] = {}
        self._counts = [(0, 0)] * count
        self._begin_s = 0.0
        told = to_json(load)
        for index in range(count):
            process = subprocess.Popen(_WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            assert process.stdout is not None
            threading.Thread(target=self._listen, args=(index, process.stdout), daemon=True).start()
            self._say(process, json.dumps({"load": told, "index": index, "of": count}))

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            process.kill()
            process.wait()

    def start(self) -> None:
        """Once all are ready."""
        for _ in self._processes:
            _, message = self._take(OPENING_S, "did not get ready")
            assert "ready" in message, message
        self._begin_s = time.monotonic() + START_DELAY_S
        for process in self._processes:
            self._say(process, f"start {self._begin_s!r}")

    def next(self, interrupted: bool) -> str | None:
        """Waits for a message: None once all are done, "interrupt" where somebody wants the end."""
        if len(self._done) == len(self._processes):
            return None
        left_s = self._begin_s + self._load.warm_up_s + self._load.duration_s - time.monotonic()
        try:
            index, message = self._take(max(0.0, left_s) + self._load.linger_s + END_S, "did not end")
        except KeyboardInterrupt:
            if interrupted:
                raise
            for process in self._processes:
                self._say(process, "stop")
            return "interrupt"
        if "records" in message:
            self._done[index] = message
        else:
            self._counts[index] = message["results"], message["failures"]
        return "progress"

    def progress(self) -> tuple[float, int, int]:
        """Seconds since the start, calls that were answered, and those that ended otherwise."""
        results, failures = zip(*self._counts, strict=True)
        return time.monotonic() - self._begin_s, sum(results), sum(failures)

    def results(self) -> list[dict[str, Any]]:
        """Of each, in order."""
        return [self._done[index] for index in range(len(self._processes))]

    def _take(self, timeout_s: float, what: str) -> tuple[int, dict[str, Any]]:
        try:
            index, message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            raise LoadFailed(f"a process of the generator {what} within {timeout_s:.0f} s") from None
        if message is None:
            if index in self._done:
                return self._take(timeout_s, what)
            code = self._processes[index].wait()
            raise LoadFailed(f"a process of the generator broke with exit code {code}")
        return index, message

    def _listen(self, index: int, pipe: IO[bytes]) -> None:
        with suppress(ValueError, OSError):  # closed at the end
            for line in pipe:
                self._messages.put((index, json.loads(line)))
        self._messages.put((index, None))

    @staticmethod
    def _say(process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # its end is heard of elsewhere
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
