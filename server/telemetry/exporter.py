"""The telemetry process: turns the front ends' trace records into spans and sends those to a collector.

Off the path of every request: what does not fit is dropped and counted, and neither a collector that is slow,
refuses or is gone, nor the death of this process, is felt by anybody who calls.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from typing import NoReturn

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from server import control
from server.boot import Boot
from server.settings import Settings
from server.telemetry import logs, names
from server.telemetry.spans import Spans
from server.telemetry.trace_counts import TraceCounts
from server.telemetry.trace_records import MAX_RECORD_BYTES, TraceRecord

# What waits while the collector takes its time; what comes beyond is dropped.
MAX_WAITING_BYTES = 16 << 20
# Records of one export, at most: some thousand spans.
RECORDS_AT_ONCE = 256
# How long a record waits for company at most, and a batch for those that were in it.
EXPORT_EVERY_S = 1.0
# Of what is wrong with a collector, in the log.
MAX_COMPLAINT = 256
# At the end, for a collector that has not taken the last export.
LAST_TRY_S = 0.5
# Of all processes the one that can wait.
NICENESS = 10

log = structlog.get_logger()


def run(boot: Boot, sock: socket.socket) -> NoReturn:
    """Never returns; ends when told to, or when the supervisor is gone."""
    settings = Settings.model_validate_json(boot.settings)
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    structlog.contextvars.bind_contextvars(process="telemetry-0")
    os.nice(NICENESS)
    endpoint = settings.telemetry.otlp_endpoint
    assert endpoint is not None
    records = socket.socket(fileno=boot.records_fd)
    inbox = Inbox(records, sock)
    export = Export(inbox, Spans(boot.device.split(",")), endpoint, sock)

    def listen() -> None:
        export.give_up(inbox.run())

    threading.Thread(target=listen, daemon=True).start()
    control.send(sock, {"type": "ready"})
    export.run()
    os._exit(0)


class Inbox:
    """Takes records off the socket as they come, in a thread of its own, and what the supervisor says."""

    def __init__(self, records: socket.socket, supervisor: socket.socket) -> None:
        self._records = records
        self._supervisor = supervisor
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._moved = threading.Condition()
        self._stop_by_s: float | None = None
        self._ended = False
        self.dropped = 0  # for want of room

    def run(self) -> float:
        """Until told to stop; then what is in the socket already is taken, too.

        Returns:
            When this process has to have ended, by the monotonic clock.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._records, selectors.EVENT_READ)
            selector.register(self._supervisor, selectors.EVENT_READ)
            while self._stop_by_s is None:
                for key, _ in selector.select():
                    if key.fileobj is self._supervisor:
                        self._obey(control.receive(self._supervisor))
                    else:
                        self.take_one()
        while self.take_one():
            pass
        with self._moved:
            self._ended = True
            self._moved.notify()
        return self._stop_by_s

    def wait(self, timeout_s: float) -> bool:
        """Until there are enough records for an export, or no more will come; True: no more will."""
        with self._moved:
            self._moved.wait_for(
                lambda: self._ended or len(self._waiting) >= RECORDS_AT_ONCE, max(0.0, timeout_s)
            )
            return self._ended

    def take(self) -> list[TraceRecord]:
        """The oldest that wait, as many as are exported at once."""
        with self._moved:
            raws = [self._waiting.popleft() for _ in range(min(RECORDS_AT_ONCE, len(self._waiting)))]
            self._bytes -= sum(map(len, raws))
        return [TraceRecord.from_bytes(raw) for raw in raws]

    def _obey(self, message: control.Message | None) -> None:
        if message is None:
            os._exit(1)  # the supervisor is gone
        match message["type"]:
            case "change":
                logs.set_level(message["log_level"])
            case "stop":
                self._stop_by_s = time.monotonic() + message["within_s"]
            case other:
                raise AssertionError(f"unknown control message {other}")

    def take_one(self) -> bool:
        """Takes a record off the socket; False: there is none."""
        try:
            raw = self._records.recv(MAX_RECORD_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        with self._moved:
            if self._bytes + len(raw) > MAX_WAITING_BYTES:
                self.dropped += 1
                return True
            self._waiting.append(raw)
            self._bytes += len(raw)
            if len(self._waiting) >= RECORDS_AT_ONCE:
                self._moved.notify()
        return True


class Export:
    """Makes spans, sends them off, and tells the supervisor what became of them."""

    def __init__(self, inbox: Inbox, spans: Spans, endpoint: str, supervisor: socket.socket) -> None:
        """`endpoint`: as OpenTelemetry has it, which also reads its own variables of the environment."""
        self._inbox = inbox
        self._spans = spans
        self._supervisor = supervisor
        self._complaint = _Complaint()
        logging.getLogger("opentelemetry").addHandler(self._complaint)
        logging.getLogger("opentelemetry").propagate = False
        self._exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._exported = 0
        self._lost = 0
        self._dropped: Counter[str] = Counter()
        self._told = TraceCounts()
        self._failing = False
        self._due_s = time.monotonic() + EXPORT_EVERY_S

    def run(self) -> None:
        """Until no more records come and all are sent, or it is time to go."""
        ending = False
        while not ending:
            ending = self._inbox.wait(self._due_s - time.monotonic())
            self._round(self._inbox.take())
        while records := self._inbox.take():
            self._round(records)
        self._send(self._spans.of_batches(all_of_them=True))

    def give_up(self, stop_by_s: float) -> NoReturn:
        """Ends the process in time, whatever `run` waits for; from another thread."""
        patience_s = LAST_TRY_S if self._failing else stop_by_s - time.monotonic()
        time.sleep(max(0.0, patience_s))
        log.warning("traces are left behind, the collector has not taken them in time")
        os._exit(0)

    def _round(self, records: list[TraceRecord]) -> None:
        spans = [span for record in records for span in self._spans.of_request(record)]
        for record in records:
            self._dropped.update(record.dropped)
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + EXPORT_EVERY_S
            spans += self._spans.of_batches()
        self._send(spans)

    def _send(self, spans: list[ReadableSpan]) -> None:
        """Then tells the supervisor, and only then the log: who reads of a failure finds it counted."""
        failing = not self._export(spans) if spans else self._failing
        self._tell()
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            log.warning("traces do not reach the collector", why=self._complaint.text)
        else:
            log.info("traces reach the collector again", spans_lost=self._lost)

    def _export(self, spans: list[ReadableSpan]) -> bool:
        """Whether the collector has taken them."""
        try:
            taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever a library of that size may raise: it is about spans only
            self._complaint.text = f"{type(error).__name__}: {error}"[:MAX_COMPLAINT]
            taken = False
        if taken:
            self._exported += len(spans)
        else:
            self._lost += len(spans)
        return taken

    def _tell(self) -> None:
        dropped = Counter(self._dropped)
        if self._inbox.dropped:
            dropped[names.DROPPED_FROM_QUEUE] = self._inbox.dropped
        counts = TraceCounts(self._exported, self._lost, dict(dropped))
        if counts != self._told:
            control.send(self._supervisor, {"type": "traced", "counts": counts.to_fields()})
            self._told = counts


class _Complaint(logging.Handler):
    """Keeps what OpenTelemetry last said was wrong; it would say so again and again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.text = record.getMessage()[:MAX_COMPLAINT]
