"""Which requests of a front end are traced, and what is told of them."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler import _ring
from scheduler.errors import InvalidRequest, RequestError
from scheduler.partition import Outcome
from server.settings import Settings
from server.telemetry.sampling import DRAW_BITS, TAIL_PER_S, Tail, Why, bound_of
from server.telemetry.trace_context import Origin
from server.telemetry.trace_records import MAX_RECORD_BYTES, TraceRecord, channel
from server.telemetry.tracer import Tracer
from tests.server.world import FrontEnd, request
from tickring.v1 import inference_pb2

METHOD = "tickring.v1.InferenceService/Predict"
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN = 0x00F067AA0BA902B7
PLAIN = Origin(METHOD)
SAMPLED = Origin(METHOD, f"00-{TRACE:032x}-{SPAN:016x}-01", "a=1")
UNSAMPLED = Origin(METHOD, f"00-{TRACE:032x}-{SPAN:016x}-00")
INVALID = Origin(METHOD, "00-nonsense", "a=1")
BOOT, ENGINE_BOOT = 11, 22
NEVER_SLOW = 3_600_000.0


def settings(ratio: float = 0.0, p99_ms: float = NEVER_SLOW) -> Settings:
    """With these."""
    return Settings.model_validate({"telemetry": {"trace_sample_ratio": ratio}, "slo": {"p99_ms": p99_ms}})


class Traced:
    """A front end whose records the test reads."""

    def __init__(self) -> None:
        self.front_end = FrontEnd()
        self.sending, self.receiving = channel()
        self.tracer = Tracer(self.sending, 3, BOOT, settings())
        self.tracer.boots[0] = ENGINE_BOOT
        self.front_end.desk.tracer = self.tracer

    def close(self) -> None:
        self.sending.close()
        self.receiving.close()
        self.front_end.close()

    def submit(self, origin: Origin = PLAIN, message: inference_pb2.PredictRequest | None = None) -> Any:
        """A request that has arrived now."""
        world = self.front_end
        return world.desk.submit(
            world.dialect,
            request() if message is None else message,
            _ring.now_ns(),
            None,
            None,
            lambda _, result: world.answers.append(result),
            origin,
        )

    def ask(self, origin: Origin = PLAIN, outcome: Outcome = Outcome.RESULT) -> None:
        """A request that an engine ends so."""
        self.submit(origin)
        self.front_end.complete(outcome)

    def records(self) -> list[TraceRecord]:
        """Those told since the last call."""
        found: list[TraceRecord] = []
        while True:
            try:
                raw = self.receiving.recv(MAX_RECORD_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.append(TraceRecord.from_bytes(raw))


@pytest.fixture
def traced() -> Iterator[Traced]:
    world = Traced()
    yield world
    world.close()


# -- which --------------------------------------------------------------------------------------


def test_sampled_flag_of_the_caller_decides(traced: Traced) -> None:
    """Whatever the ratio is; the caller's trace is continued."""
    traced.ask(SAMPLED)
    (record,) = traced.records()
    assert (record.trace_id, record.parent_id, record.state) == (TRACE, SPAN, "a=1")
    assert record.why == "parent"

    traced.tracer.change(settings(ratio=1.0))
    traced.ask(UNSAMPLED)
    assert traced.records() == []


@pytest.mark.parametrize("origin", [PLAIN, INVALID])
def test_without_a_trace_of_the_caller_the_ratio_decides(traced: Traced, origin: Origin) -> None:
    """A trace id of its own for each; an invalid context is none, and its state goes with it."""
    traced.ask(origin)
    assert traced.records() == []
    traced.tracer.change(settings(ratio=1.0))
    traced.ask(origin)
    traced.ask(origin)
    one, other = traced.records()
    assert one.trace_id != other.trace_id
    assert (one.why, one.parent_id, one.state) == ("ratio", 0, "")
    assert one.trace_id >> DRAW_BITS


def test_ratio_takes_its_part_by_trace_id(traced: Traced) -> None:
    """As OpenTelemetry's rule would have decided of the same ids."""
    traced.tracer.change(settings(ratio=0.25))
    records = []
    for _ in range(20):
        for _ in range(100):
            traced.ask()
        records += traced.records()
    # Ten standard deviations on either side.
    assert 306 <= len(records) <= 694
    assert all(record.trace_id % (1 << DRAW_BITS) < bound_of(0.25) for record in records)


def test_bounds_of_nothing_and_everything() -> None:
    """No draw is below 0 and all are below the last."""
    assert bound_of(0.0) == 0
    assert bound_of(1.0) == 1 << DRAW_BITS


@pytest.mark.parametrize("origin", [PLAIN, UNSAMPLED])
@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (Outcome.ERROR, "INTERNAL", "MODEL_ERROR"),
        (Outcome.NON_FINITE, "INTERNAL", "NON_FINITE_OUTPUT"),
        (Outcome.EXPIRED, "DEADLINE_EXCEEDED", "EXPIRED_IN_QUEUE"),
    ],
)
def test_failed_request_is_traced(
    traced: Traced, origin: Origin, outcome: Outcome, code: str, reason: str
) -> None:
    """At ratio 0, and where the caller has not sampled it."""
    traced.ask(origin, outcome)
    (record,) = traced.records()
    assert (record.why, record.code, record.reason) == ("failed", code, reason)
    assert record.outcome == outcome.name.lower()


def test_lost_request_is_traced_with_its_engine(traced: Traced) -> None:
    """No batch: what the engine did with it nobody knows."""
    traced.submit()
    traced.front_end.partition.lose_engine(0)
    (record,) = traced.records()
    assert (record.code, record.outcome, record.reason) == ("UNAVAILABLE", "lost", "ENGINE_LOST")
    assert record.course is not None
    assert (record.course.engine, record.course.engine_boot, record.course.batch) == (0, ENGINE_BOOT, 0)


def test_cancelled_request_is_no_failure(traced: Traced) -> None:
    """Its caller left; a storm of those is nothing to look into here."""
    traced.ask(PLAIN, Outcome.CANCELLED)
    assert traced.records() == []
    traced.ask(SAMPLED, Outcome.CANCELLED)
    (record,) = traced.records()
    assert (record.why, record.code, record.outcome) == ("parent", "CANCELLED", "cancelled")


def test_slow_request_is_traced(traced: Traced) -> None:
    """Slower than slo.p99_ms, as that is now."""
    traced.tracer.change(settings(p99_ms=0.0))
    traced.ask()
    (record,) = traced.records()
    assert (record.why, record.outcome) == ("slow", "result")
    traced.tracer.change(settings())
    traced.ask()
    assert traced.records() == []


def test_refused_request_is_traced_as_far_as_it_is_known(traced: Traced) -> None:
    """One that is no request at all, one of an unknown model, and one that finds no room."""
    desk = traced.front_end.desk
    desk.refused(PLAIN, None, _ring.now_ns(), InvalidRequest("request", "3 bytes are not a PredictRequest"))
    with pytest.raises(RequestError):
        traced.submit(message=inference_pb2.PredictRequest(model_name="unheard of"))
    desk.admission.draining = True
    with pytest.raises(RequestError):
        traced.submit()
    desk.admission.draining = False
    for _ in range(2):
        traced.submit(message=request(8))
    with pytest.raises(RequestError):
        traced.submit(message=request(1, request_id="no room"))

    records = traced.records()
    assert {record.why for record in records} == {"refused"}
    assert {record.outcome for record in records} == {"refused"}
    assert {record.course for record in records} == {None}
    assert [record.reason for record in records] == [
        "INVALID_REQUEST",
        "MODEL_NOT_FOUND",
        "DRAINING",
        "QUEUE_FULL",
    ]
    assert [record.model for record in records] == ["", "", "", "pair"]
    assert (records[3].rows, records[3].request_id, records[3].priority) == (1, "no room", "batch_processing")


def test_cap_of_a_second_is_for_each_kind() -> None:
    """And back with the next second."""
    tail = Tail()
    second_ns = 1_000_000_000
    for now_ns in (5 * second_ns, 6 * second_ns):
        for kind in (Why.SLOW, Why.FAILED, Why.REFUSED):
            assert [tail.takes(kind, now_ns) for _ in range(3 * TAIL_PER_S)].count(True) == TAIL_PER_S


def test_failures_beyond_the_cap_are_counted(traced: Traced) -> None:
    """They are told with the next record that leaves; a caller's own trace has no cap."""
    over = 0
    for _ in range(3):  # a second may end in between, once
        for _ in range(2 * TAIL_PER_S):
            traced.ask(UNSAMPLED, Outcome.EXPIRED)
        over = 2 * TAIL_PER_S - len(traced.records())
        if over == TAIL_PER_S:
            break
    assert over == TAIL_PER_S
    for _ in range(2 * TAIL_PER_S):
        traced.ask(SAMPLED, Outcome.EXPIRED)
    records = traced.records()
    assert len(records) == 2 * TAIL_PER_S
    assert records[0].dropped["cap"] >= TAIL_PER_S
    assert records[1].dropped == {}


def test_prediction_of_its_own_is_not_traced(traced: Traced) -> None:
    """It came by no RPC."""
    traced.tracer.change(settings(ratio=1.0))
    traced.front_end.submit()
    traced.front_end.complete(Outcome.ERROR)
    assert traced.records() == []


# -- what ---------------------------------------------------------------------------------------


def test_record_has_the_facts_of_request_and_batch(traced: Traced) -> None:
    """Instants in their order, and nothing of the payload."""
    message = request(2, request_id="mine")
    traced.submit(SAMPLED, message)
    traced.front_end.complete(Outcome.RESULT)
    (record,) = traced.records()
    assert (record.method, record.code, record.outcome, record.reason) == (METHOD, "OK", "result", "")
    assert (record.frontend, record.frontend_boot) == (3, BOOT)
    assert (record.model, record.version, record.priority) == ("pair", "3", "batch_processing")
    assert (record.rows, record.request_id, record.cache_hit) == (2, "mine", False)
    course = record.course
    assert course is not None
    assert (course.engine, course.engine_boot, course.batch) == (0, ENGINE_BOOT, 7)
    assert (course.batch_size, course.batch_bucket) == (2, 8)
    assert course.dispatched_ns == record.arrived_ns + course.queue_wait_ns
    assert course.compute_start_ns - course.dispatched_ns == 10
    assert course.compute_end_ns - course.compute_start_ns == 10
    assert record.arrived_ns < course.dispatched_ns <= course.compute_end_ns <= record.ended_ns


def test_full_socket_costs_records_and_nothing_else(traced: Traced) -> None:
    """Every request is answered; what was dropped is counted and told once there is room again."""
    asked = 5000
    for _ in range(asked):
        traced.ask(SAMPLED)
    assert len(traced.front_end.answers) == asked
    kept = len(traced.records())
    assert 0 < kept < asked
    traced.ask(SAMPLED)
    (record,) = traced.records()
    assert kept + record.dropped["socket"] == asked
