"""What a front end tells the telemetry process of a request that is traced: one datagram.

The facts and nothing of the payload; spans are made of them there.
"""

import json
import socket
from typing import NamedTuple

# Far above what a record takes: its longest parts are a tracestate and the names of model and request.
MAX_RECORD_BYTES = 1 << 16
# What the kernel may keep of them while the telemetry process is busy, or is not there. It grants at most
# net.core.wmem_max, by default enough for some 250 records.
SOCKET_BYTES = 1 << 20


class Course(NamedTuple):
    """What became of a request that was let in. Instants are nanoseconds of the monotonic clock.

    Attributes:
        engine, engine_boot: which engine it was given to, and which of its processes; -1 and 0: to none.
        batch: of the batches that it ran in, the number of the one that ended last, in that engine process;
            0: it ran in none, and what follows means nothing.
    """

    engine: int
    engine_boot: int
    queue_wait_ns: int
    batch: int
    batch_size: int
    batch_bucket: int
    dispatched_ns: int
    compute_start_ns: int
    compute_end_ns: int


class TraceRecord(NamedTuple):
    """One request, or one message of an RPC stream. Instants are nanoseconds of the monotonic clock.

    Attributes:
        method: see `Origin`.
        trace_id: the caller's, or a new one.
        parent_id: the caller's span; 0 where there is none.
        state: the caller's tracestate, unchecked.
        why: the value of a `Why`.
        wall_offset_ns: the wall clock minus the monotonic one.
        frontend, frontend_boot: which front end, and which of its processes.
        model, version, priority: empty where the request was refused before they were known; so is its
            `request_id`, and `rows` is 0.
        code: of gRPC, by its name.
        outcome: the name of the `Outcome` in small letters, or "refused".
        reason: of ErrorInfo; empty for a result.
        course: None where it was refused.
        dropped: by reason, the records that have not left this front end since the last one that did.
    """

    method: str
    trace_id: int
    parent_id: int
    state: str
    why: str
    wall_offset_ns: int
    arrived_ns: int
    ended_ns: int
    frontend: int
    frontend_boot: int
    model: str
    version: str
    priority: str
    rows: int
    request_id: str
    code: str
    outcome: str
    reason: str
    cache_hit: bool
    course: Course | None
    dropped: dict[str, int]

    def to_bytes(self) -> bytes:
        """As a datagram."""
        return json.dumps(self).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "TraceRecord":
        """Back from `to_bytes`."""
        record = cls(*json.loads(raw))
        return record if record.course is None else record._replace(course=Course(*record.course))


def channel() -> tuple[socket.socket, socket.socket]:
    """A connected pair: the end that all front ends send on, and the telemetry process's.

    The supervisor keeps both, so that either side may come and go.
    """
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return sending, receiving
