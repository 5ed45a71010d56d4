"""Makes OpenTelemetry's spans of trace records; docs/traces.md says which.

The ids of an engine's `batch` span follow from the engine's process and the number of the batch, so a request
can link to it before anybody has seen it whole.
"""

import importlib.metadata
import socket
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from random import getrandbits

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status, StatusCode

from server.telemetry import names
from server.telemetry.trace_context import parse_tracestate
from server.telemetry.trace_records import Course, TraceRecord

# What a server is to call an error, by the conventions for gRPC. The others are the caller's business.
ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
# Of a batch: as many links back to requests, OpenTelemetry's own limit.
MAX_LINKS = 128
# Batches whose span has been made: a request that comes after that is in no link of it. They come within
# milliseconds of each other, so this reaches far.
BATCHES_KEPT = 4096
# Processes whose resource is kept ready.
_PROCESSES_KEPT = 64

_NAME = "tickring"
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

Attributes = dict[str, str | int | bool]


class _Batch:
    """An engine's batch with the requests of it that are traced."""

    def __init__(self, record: TraceRecord, course: Course) -> None:
        self.record = record
        self.course = course
        self.requests: list[SpanContext] = []
        self.has_waited = False


class Spans:
    """Makes the spans, and remembers what belongs together."""

    def __init__(self, devices: Sequence[str]) -> None:
        """`devices`: of the engines; that of index i has number i modulo their number."""
        self._devices = devices
        self._version = importlib.metadata.version(_NAME)
        self._scope = InstrumentationScope(_NAME, self._version)
        self._resource = lru_cache(_PROCESSES_KEPT)(self._make_resource)
        self._open: dict[tuple[int, int], _Batch] = {}
        self._made: OrderedDict[tuple[int, int], None] = OrderedDict()

    def of_request(self, record: TraceRecord) -> list[ReadableSpan]:
        """The span of a request, and those of its parts. That of its batch comes from `of_batches`."""
        parent = None
        if record.parent_id:
            parent = _context(record, record.parent_id, is_remote=True)
        server = _context(record, _new_span_id())
        resource = self._resource("frontend", record.frontend, record.frontend_boot)
        spans = [self._server_span(record, server, parent, resource)]
        course = record.course
        if course is None:
            return spans
        attributes = self._request_attributes(record)
        if course.queue_wait_ns:
            spans.append(
                self._span(
                    names.SPAN_QUEUE_WAIT,
                    record,
                    (record.arrived_ns, record.arrived_ns + course.queue_wait_ns),
                    _context(record, _new_span_id()),
                    resource,
                    {**attributes, names.QUEUE_WAIT_NS: course.queue_wait_ns},
                    parent=server,
                )
            )
        if course.batch:
            batch = self._batch(record, course)
            if len(batch.requests) < MAX_LINKS:
                batch.requests.append(server)
            spans.append(
                self._span(
                    names.SPAN_BATCH_COMPUTE,
                    record,
                    (course.dispatched_ns, course.compute_end_ns),
                    _context(record, _new_span_id()),
                    resource,
                    {**attributes, **self._batch_attributes(course)},
                    parent=server,
                    links=[Link(batch_context(course.engine_boot, course.batch))],
                )
            )
        return spans

    def of_batches(self, *, all_of_them: bool = False) -> list[ReadableSpan]:
        """The spans of batches that were open at the last call already: whoever was in them has told by now.

        `all_of_them`: nobody will tell anything more.
        """
        due = {key: batch for key, batch in self._open.items() if batch.has_waited or all_of_them}
        for key in due:
            del self._open[key]
            self._made[key] = None
        while len(self._made) > BATCHES_KEPT:
            self._made.popitem(last=False)
        for batch in self._open.values():
            batch.has_waited = True
        return [self._batch_span(batch) for batch in due.values()]

    def _batch(self, record: TraceRecord, course: Course) -> _Batch:
        key = course.engine_boot, course.batch
        batch = self._open.get(key)
        if batch is None:
            batch = _Batch(record, course)
            if key not in self._made:
                self._open[key] = batch
        return batch

    def _server_span(
        self, record: TraceRecord, own: SpanContext, parent: SpanContext | None, resource: Resource
    ) -> ReadableSpan:
        attributes: Attributes = {
            names.RPC_SYSTEM_NAME: "grpc",
            names.RPC_METHOD: record.method,
            names.RPC_RESPONSE_STATUS_CODE: record.code,
            names.OUTCOME: record.outcome,
            names.CACHE_HIT: record.cache_hit,
            names.TRACED_FOR: record.why,
            **self._request_attributes(record),
        }
        if record.rows:
            attributes[names.REQUEST_ROWS] = record.rows
        if record.request_id:
            attributes[names.REQUEST_ID] = record.request_id
        if record.reason:
            attributes[names.REASON] = record.reason
        if record.course is not None:
            attributes[names.QUEUE_WAIT_NS] = record.course.queue_wait_ns
            if record.course.batch:
                attributes |= self._batch_attributes(record.course)
            elif record.course.engine >= 0:
                attributes[names.DEVICE] = self._device(record.course.engine)
        is_error = record.code in ERRORS
        if is_error:
            attributes[names.ERROR_TYPE] = record.code
        return self._span(
            record.method,
            record,
            (record.arrived_ns, record.ended_ns),
            own,
            resource,
            attributes,
            parent=parent,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, record.reason) if is_error else Status(StatusCode.UNSET),
        )

    def _batch_span(self, batch: _Batch) -> ReadableSpan:
        record, course = batch.record, batch.course
        return self._span(
            names.SPAN_BATCH,
            record,
            (course.dispatched_ns, course.compute_end_ns),
            batch_context(course.engine_boot, course.batch),
            self._resource("engine", course.engine, course.engine_boot),
            {
                names.MODEL_NAME: record.model,
                names.MODEL_VERSION: record.version,
                **self._batch_attributes(course),
            },
            links=[Link(request) for request in batch.requests],
        )

    @staticmethod
    def _request_attributes(record: TraceRecord) -> Attributes:
        if not record.model:
            return {}
        return {
            names.MODEL_NAME: record.model,
            names.MODEL_VERSION: record.version,
            names.PRIORITY: record.priority,
        }

    def _batch_attributes(self, course: Course) -> Attributes:
        return {
            names.BATCH_NUMBER: course.batch,
            names.BATCH_SIZE: course.batch_size,
            names.BATCH_BUCKET: course.batch_bucket,
            names.BATCH_PREPARE_NS: course.compute_start_ns - course.dispatched_ns,
            names.DEVICE: self._device(course.engine),
        }

    def _device(self, engine: int) -> str:
        return self._devices[engine % len(self._devices)]

    def _span(
        self,
        name: str,
        record: TraceRecord,
        times: tuple[int, int],
        own: SpanContext,
        resource: Resource,
        attributes: Attributes,
        *,
        parent: SpanContext | None = None,
        links: Sequence[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status | None = None,
    ) -> ReadableSpan:
        start_ns, end_ns = (at_ns + record.wall_offset_ns for at_ns in times)
        return ReadableSpan(
            name,
            own,
            parent,
            resource,
            attributes,
            links=links,
            kind=kind,
            status=status or Status(StatusCode.UNSET),
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=self._scope,
        )

    def _make_resource(self, role: str, index: int, boot: int) -> Resource:
        process = f"{role}-{index}"
        own = Resource(
            {
                names.SERVICE_NAME: _NAME,
                names.SERVICE_VERSION: self._version,
                names.HOST_NAME: socket.gethostname(),
            }
        )
        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) is what somebody wants.
        given = Resource.create()
        if str(given.attributes[names.SERVICE_NAME]).startswith("unknown_service"):
            given = Resource(
                {name: value for name, value in given.attributes.items() if name != names.SERVICE_NAME}
            )
        return own.merge(given).merge(
            Resource({names.SERVICE_INSTANCE_ID: f"{process}-{boot:016x}", names.PROCESS: process})
        )


def batch_context(boot: int, batch: int) -> SpanContext:
    """Of an engine process's batch."""
    digest = blake2b(f"{boot}/{batch}".encode(), digest_size=24).digest()
    return SpanContext(
        int.from_bytes(digest[:16]), int.from_bytes(digest[16:]), is_remote=False, trace_flags=_SAMPLED
    )


def _context(record: TraceRecord, span_id: int, *, is_remote: bool = False) -> SpanContext:
    state = TraceState(parse_tracestate(record.state))
    return SpanContext(record.trace_id, span_id, is_remote=is_remote, trace_flags=_SAMPLED, trace_state=state)


def _new_span_id() -> int:
    while not (span_id := getrandbits(64)):
        pass
    return span_id
