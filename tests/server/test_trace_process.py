"""The telemetry process between front ends that do not wait for it and collectors of every kind."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server import control
from server.lineup import Lineup
from server.revision import Revision
from server.rpc.kserve_models import trace_settings
from server.settings import Settings
from server.telemetry.exporter import MAX_WAITING_BYTES, Inbox
from server.telemetry.trace_counts import TraceCounts
from server.telemetry.trace_process import TraceProcess
from server.telemetry.trace_records import TraceRecord, channel
from tests.certificates import Authority
from tests.e2e.collector import SLEEP, TAKE, Collector
from tests.e2e.service import pause
from tests.server.test_spans import RECORD

PATIENCE_S = 60.0
# Server span, queue wait, compute; and each of these records has a batch of its own.
SPANS_EACH = 4
# For an export with all its retries.
TIMEOUT_S = "1"


def record(number: int) -> TraceRecord:
    """Of a trace and a batch of its own."""
    assert RECORD.course is not None
    return RECORD._replace(trace_id=number, course=RECORD.course._replace(batch=number))


class Watched(TraceProcess):
    """Says when something has happened."""

    def __init__(self, revision: Revision, devices: Sequence[str]) -> None:
        super().__init__(revision, devices)
        self.moved = asyncio.Event()

    def _heard(self, message: control.Message | None) -> None:
        super()._heard(message)
        self.moved.set()

    def _exited(self) -> None:
        super()._exited()
        self.moved.set()


class Running:
    """A telemetry process, and the front end's end of its socket."""

    def __init__(self, endpoint: str) -> None:
        settings = Settings.model_validate({"telemetry": {"otlp_endpoint": endpoint}})
        self.process = Watched(Revision(0, settings, Lineup((), (), None)), ["cpu", "cpu"])
        self.records = socket.socket(fileno=os.dup(self.process.records_fd))
        self.process.start()

    def send(self, *numbers: int, dropped: int = 0) -> int:
        """Records, as a front end sends them; returns how many found no room."""
        refused = 0
        for number in numbers:
            drops = {"socket": dropped} if dropped else {}
            try:
                self.records.send(record(number)._replace(dropped=drops).to_bytes(), socket.MSG_DONTWAIT)
            except BlockingIOError:
                refused += 1
        return refused

    @property
    def counts(self) -> TraceCounts:
        return self.process.counts

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Waits for what the process tells."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                self.process.moved.clear()
                await self.process.moved.wait()

    async def ready(self) -> None:
        """Waits until it takes records."""
        await self.until(lambda: self.process.child.ready)

    @property
    def pid(self) -> int:
        assert self.process.child.process is not None
        return self.process.child.process.pid


@asynccontextmanager
async def running(endpoint: str) -> AsyncIterator[Running]:
    """One that is stopped at the end, in time."""
    it = Running(endpoint)
    try:
        yield it
    finally:
        await it.process.stop(PATIENCE_S)
        it.records.close()
    assert not it.process.child.alive


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a collector's silence does not take the test's time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", TIMEOUT_S)


@pytest.fixture
def collector() -> Iterator[Collector]:
    it = Collector()
    yield it
    it.stop()


def free_port() -> int:
    """That nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def test_all_records_become_spans_and_all_are_counted(collector: Collector) -> None:
    """Each once."""
    numbers = range(1, 101)
    async with running(collector.endpoint) as it:
        assert it.send(*numbers) == 0
        await it.until(lambda: it.counts.spans_exported >= SPANS_EACH * len(numbers))
        assert it.counts == TraceCounts(SPANS_EACH * len(numbers), 0, {})
    found = collector.wait_for(RECORD.method, count=len(numbers))
    assert {int(span["trace_id"], 16) for span in found} == set(numbers)
    assert len(collector.spans("batch")) == len(collector.spans("batch.compute")) == len(numbers)


async def test_what_was_told_just_before_the_end_still_arrives(collector: Collector) -> None:
    """Also the batches, which otherwise wait for company."""
    async with running(collector.endpoint) as it:
        await it.ready()
        it.send(1, 2, 3)
    assert it.counts.spans_exported == 3 * SPANS_EACH
    collector.wait_for("batch", count=3)


async def test_drops_of_front_ends_are_counted(collector: Collector) -> None:
    """As they tell with what they do send."""
    async with running(collector.endpoint) as it:
        it.send(1, dropped=40)
        it.send(2, dropped=2)
        await it.until(lambda: it.counts.records_dropped == {"socket": 42})


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["", SLEEP, "UNAVAILABLE", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
async def test_what_a_collector_does_not_take_is_counted_until_it_takes_some(behaviour: str) -> None:
    """One that is not there, does not answer, or refuses; then one that works, at the same address."""
    port = free_port()
    first = Collector(behaviour, port) if behaviour else None
    async with running(f"http://127.0.0.1:{port}") as it:
        it.send(*range(1, 11))
        await it.until(lambda: it.counts.spans_dropped == 10 * SPANS_EACH)
        assert it.counts.spans_exported == 0
        if first is not None:
            assert first.calls >= 1
            first.stop()
        second = Collector(TAKE, port)
        number = 100
        while not it.counts.spans_exported:
            it.send(number := number + 1)
            sent, counts = number, it.counts
            await it.until(lambda c=counts: it.counts != c)  # type: ignore[misc]
        await it.until(
            lambda: it.counts.spans_exported + it.counts.spans_dropped == (10 + sent - 100) * SPANS_EACH
        )
        second.stop()


async def test_end_does_not_wait_for_a_collector_that_is_silent() -> None:
    """What it had is left behind; nobody has to kill it."""
    silent = Collector(SLEEP)
    log: list[str] = []
    async with running(silent.endpoint) as it:
        it.send(1)
        await it.until(lambda: it.counts.spans_dropped > 0)
        it.process.child.kill = lambda: log.append("killed")  # type: ignore[method-assign]
    assert log == []
    silent.stop()


async def test_records_that_find_no_room_are_refused_at_once(collector: Collector) -> None:
    """A process that stands still takes a bounded number; then it goes on with them."""
    sent = 5000
    async with running(collector.endpoint) as it:
        await it.ready()
        pause(it.pid)
        try:
            refused = it.send(*range(1, sent + 1))
            assert 0 < refused < sent
        finally:
            os.kill(it.pid, signal.SIGCONT)
        taken = sent - refused
        await it.until(lambda: it.counts.spans_exported == taken * SPANS_EACH)


async def test_process_that_dies_is_replaced_and_its_counts_stay(collector: Collector) -> None:
    """What comes meanwhile waits in the socket."""
    async with running(collector.endpoint) as it:
        it.send(1)
        await it.until(lambda: it.counts.spans_exported == SPANS_EACH)
        pid = it.pid
        os.kill(pid, signal.SIGKILL)
        await it.until(lambda: not it.process.child.alive)
        assert it.send(2) == 0
        await it.until(lambda: it.counts.spans_exported == 2 * SPANS_EACH)
        assert it.pid != pid
        assert it.process.child.restarts == 1
    collector.wait_for(RECORD.method, count=2)


async def test_collector_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By https, and the variable that names its authority."""
    authority = Authority(tmp_path / "authority")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(authority.cert))
    secure = Collector(tls=authority.sign("collector"))
    async with running(secure.endpoint) as it:
        it.send(1)
        await it.until(lambda: it.counts.spans_exported == SPANS_EACH)
    secure.stop()


def test_what_waits_in_the_process_is_bounded() -> None:
    """By bytes; what is beyond is counted."""
    sending, receiving = channel()
    ours, theirs = socket.socketpair()
    inbox = Inbox(receiving, theirs)
    raw = record(1).to_bytes()
    room = MAX_WAITING_BYTES // len(raw)
    for _ in range(room + 10):
        sending.send(raw, socket.MSG_DONTWAIT)
        assert inbox.take_one()
    assert inbox.dropped == 10
    taken = 0
    while records := inbox.take():
        taken += len(records)
    assert taken == room
    sending.send(raw, socket.MSG_DONTWAIT)
    assert inbox.take_one()
    assert len(inbox.take()) == 1
    for each in (sending, receiving, ours, theirs):
        each.close()


async def test_second_signal_leaves_no_process_behind(collector: Collector) -> None:
    """Killed, it is not started again."""
    async with running(collector.endpoint) as it:
        await it.ready()
        it.process.kill()
        await it.until(lambda: not it.process.child.alive)
        it.process.start()
        assert not it.process.child.alive
        assert it.process.child.restarts == 0


def test_counts_have_a_metric_each() -> None:
    """Also those of which nothing has been counted."""
    counts = TraceCounts(5, 2, {"cap": 1}) + TraceCounts(1, 0, {"cap": 2, "queue": 4})
    assert counts.by_metric() == {
        ("tickring_trace_spans_exported_total", ""): 6,
        ("tickring_trace_spans_dropped_total", ""): 2,
        ("tickring_trace_records_dropped_total", "cap"): 3,
        ("tickring_trace_records_dropped_total", "socket"): 0,
        ("tickring_trace_records_dropped_total", "queue"): 4,
    }


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, {"trace_level": "OFF"}),
        (
            {"otlp_endpoint": "http://127.0.0.1:4317", "trace_sample_ratio": 0.01},
            {"trace_level": "TIMESTAMPS", "trace_mode": "opentelemetry", "trace_rate": "100"},
        ),
        (
            {"otlp_endpoint": "http://127.0.0.1:4317", "trace_sample_ratio": 0},
            {"trace_level": "TIMESTAMPS", "trace_mode": "opentelemetry"},
        ),
    ],
)
def test_clients_of_triton_can_see_what_is_traced(table: dict[str, Any], told: dict[str, str]) -> None:
    """By Triton's names."""
    assert trace_settings(Settings.model_validate({"telemetry": table}).telemetry) == told


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4317",
        "http://",
        "http:///v1/traces",
        "http://collector:4317/v1/traces",
        "grpc://collector:4317",
        "http://user:password@collector:4317",
        "unix:/run/collector",
        "http://collector:4317 ",
    ],
)
def test_endpoint_that_opentelemetry_would_misread_is_refused(endpoint: str) -> None:
    """Before anything starts."""
    wanted = re.escape("must be http://HOST:PORT or https://HOST:PORT")
    with pytest.raises(ValueError, match=wanted):
        Settings.model_validate({"telemetry": {"otlp_endpoint": endpoint}})


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:4317", "https://collector.example:4317/", "http://[::1]:4317"]
)
def test_endpoint_of_either_scheme_is_taken(endpoint: str) -> None:
    """With and without the slash that URLs may end with."""
    assert (
        Settings.model_validate({"telemetry": {"otlp_endpoint": endpoint}}).telemetry.otlp_endpoint
        == endpoint
    )
