"""A front end's part of tracing: looks at every request that ends, and tells of those that are traced."""

import socket
import time
from collections import Counter
from dataclasses import dataclass
from random import getrandbits

from scheduler import _ring
from scheduler.errors import RequestCancelled, RequestError
from scheduler.partition import Outcome, Submission
from server.rpc.request import CheckedRequest
from server.settings import Settings
from server.status import code_of, reason_of
from server.telemetry import names
from server.telemetry.sampling import DRAW_BITS, Tail, Why, bound_of
from server.telemetry.trace_context import Origin
from server.telemetry.trace_records import Course, TraceRecord

REFUSED = "refused"


@dataclass(slots=True)
class _Ending:
    """A request that is over. Made only of those that may be traced.

    `request` None: it was refused before it was checked. `submission` None: it was refused.
    """

    origin: Origin
    request: CheckedRequest | None
    submission: Submission | None
    arrived_ns: int
    now_ns: int
    error: RequestError | None

    @property
    def outcome(self) -> str:
        if self.submission is None:
            return REFUSED
        outcome = self.submission.outcome
        if outcome is Outcome.RESULT and self.error is not None:  # a result that fits no response
            outcome = Outcome.ERROR
        return outcome.name.lower()


class Tracer:
    """One for a front end. Belongs to its event loop.

    Attributes:
        boots: by engine, what its present process is known by.
    """

    def __init__(self, records: socket.socket, frontend: int, boot: int, settings: Settings) -> None:
        """Args:
        records: where to, without ever waiting.
        boot: what this process is known by.
        """
        self._records = records
        self._frontend = frontend
        self._boot = boot
        self._tail = Tail()
        self._dropped: Counter[str] = Counter()
        self.boots: dict[int, int] = {}
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Goes by these from now on."""
        self._bound = bound_of(settings.telemetry.trace_sample_ratio)
        self._slow_ns = int(settings.slo.p99_ms * 1e6)

    def ended(
        self,
        origin: Origin,
        request: CheckedRequest,
        submission: Submission,
        arrived_ns: int,
        now_ns: int,
        result: bytes | RequestError,
    ) -> int:
        """A request that was let in is answered. Before its slots are released.

        Returns the id of the trace that tells of it; 0: none does.
        """
        draw = getrandbits(DRAW_BITS)
        slow = now_ns - arrived_ns > self._slow_ns
        parent = origin.parent if origin.traceparent else None
        sampled = draw < self._bound if parent is None else parent.sampled
        if not sampled and not slow and type(result) is bytes:  # as nearly all are
            return 0
        error = result if isinstance(result, RequestError) else None
        failed = error is not None and not isinstance(error, RequestCancelled)
        tail = Why.FAILED if failed else Why.SLOW if slow else None
        return self._consider(_Ending(origin, request, submission, arrived_ns, now_ns, error), tail, draw)

    def refused(
        self, origin: Origin, request: CheckedRequest | None, arrived_ns: int, error: RequestError
    ) -> None:
        """A request was not let in. `request`: None where it was refused before it was checked."""
        ending = _Ending(origin, request, None, arrived_ns, _ring.now_ns(), error)
        self._consider(ending, Why.REFUSED, getrandbits(DRAW_BITS))

    def _consider(self, ending: _Ending, tail: Why | None, draw: int) -> int:
        if not ending.origin.method:  # one that the front end made for itself
            return 0
        parent = ending.origin.parent
        if parent is not None and parent.sampled:
            return self._tell(ending, Why.PARENT, draw)
        if parent is None and draw < self._bound:
            return self._tell(ending, Why.RATIO, draw)
        if tail is not None:
            if self._tail.takes(tail, ending.now_ns):
                return self._tell(ending, tail, draw)
            self._dropped[names.DROPPED_BY_CAP] += 1
        return 0

    def _tell(self, ending: _Ending, why: Why, draw: int) -> int:
        origin, request, error = ending.origin, ending.request, ending.error
        parent = origin.parent
        record = TraceRecord(
            method=origin.method,
            trace_id=parent.trace_id if parent else getrandbits(DRAW_BITS) << DRAW_BITS | draw,
            parent_id=parent.span_id if parent else 0,
            state=origin.tracestate if parent else "",
            why=why.value,
            wall_offset_ns=time.time_ns() - _ring.now_ns(),
            arrived_ns=ending.arrived_ns,
            ended_ns=ending.now_ns,
            frontend=self._frontend,
            frontend_boot=self._boot,
            model=request.model.signature.name if request else "",
            version=str(request.model.signature.version) if request else "",
            priority=request.priority.label if request else "",
            rows=request.rows if request else 0,
            request_id=request.request_id if request else "",
            code="OK" if error is None else code_of(error).name,
            outcome=ending.outcome,
            reason="" if error is None else reason_of(error),
            cache_hit=False,  # there is no cache yet
            course=self._course(ending.submission),
            dropped=dict(self._dropped),
        )
        try:
            self._records.send(record.to_bytes(), socket.MSG_DONTWAIT)
        except OSError:  # the socket is full: no request waits for those who watch it
            self._dropped[names.DROPPED_AT_SOCKET] += 1
            return 0
        self._dropped.clear()
        return record.trace_id

    def _course(self, submission: Submission | None) -> Course | None:
        if submission is None:
            return None
        ran = submission.last_batch != 0
        return Course(
            engine=submission.engine,
            engine_boot=self.boots.get(submission.engine, 0),
            queue_wait_ns=submission.queue_wait_ns,
            batch=submission.last_batch,
            batch_size=submission.batch_size,
            batch_bucket=submission.batch_bucket,
            dispatched_ns=submission.compute_end_ns - submission.compute_ns if ran else 0,
            compute_start_ns=submission.compute_start_ns if ran else 0,
            compute_end_ns=submission.compute_end_ns if ran else 0,
        )
