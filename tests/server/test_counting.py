"""How each request is counted: by the end that its caller sees, whichever way it took."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from scheduler import _ring, errors
from scheduler.errors import RequestError
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.auth import Unauthenticated
from server.rpc.desk import Ticket
from server.status import code_of
from server.telemetry import names
from server.telemetry.counting import shed_reason
from server.telemetry.trace_context import Origin
from tests.server.world import FrontEnd, request

MS = 1_000_000
HIGH, NORMAL, LOW = (
    PriorityClass.REAL_TIME_TRADING,
    PriorityClass.BATCH_PROCESSING,
    PriorityClass.BACKGROUND_TASKS,
)
CODES = [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])]


def submit(front_end: FrontEnd, **fields: Any) -> Ticket:
    """As an RPC does."""
    return front_end.submit(**fields, origin=Origin("a/B"))


def refuse(front_end: FrontEnd, **fields: Any) -> RequestError:
    """The same, of what is not let in."""
    with pytest.raises(RequestError) as raised:
        submit(front_end, **fields)
    return raised.value


def codes(front_end: FrontEnd, cls: int = NORMAL.index, row: int = 0) -> dict[str, int]:
    """How many requests have ended so."""
    counts = front_end.arena.native.request_counts(row, cls)["codes"]
    return {code: count for code, count in zip(CODES, counts, strict=True) if count}


def shed(front_end: FrontEnd, cls: int = NORMAL.index, row: int = 0) -> dict[str, int]:
    """How many were refused for these reasons."""
    counts = front_end.arena.native.request_counts(row, cls)["shed"]
    return {reason: count for reason, count in zip(names.SHED_REASONS, counts, strict=False) if count}


def timed(front_end: FrontEnd, cls: int = NORMAL.index) -> tuple[int, int]:
    """Requests and queue waits that were measured."""
    found = front_end.arena.native.request_counts(0, cls)
    return sum(found["request"]), sum(found["queue_wait"])


# -- let in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [*Outcome])
def test_request_counts_as_what_its_caller_is_told(front_end: FrontEnd, outcome: Outcome) -> None:
    """Once, however many rows it has; it has waited unless its engine was lost."""
    submit(front_end, message=request(3))
    if outcome is Outcome.LOST:
        front_end.partition.lose_engine(0)
    else:
        front_end.complete(outcome)
    (answer,) = front_end.answers
    told = "OK" if isinstance(answer, bytes) else code_of(answer).name
    assert codes(front_end) == {told: 1}
    assert timed(front_end) == (1, 0 if outcome is Outcome.LOST else 1)
    assert shed(front_end) == {}


def test_durations_are_from_arrival_to_answer_and_to_dispatch(front_end: FrontEnd) -> None:
    """In nanoseconds, by class."""
    now_ns = _ring.now_ns()
    submit(front_end, message=request(priority=HIGH.value), arrived_ns=now_ns - 50 * MS)
    front_end.complete(Outcome.RESULT)
    took_ns = _ring.now_ns() - now_ns
    found = front_end.arena.native.request_counts(0, HIGH.index)
    assert 50 * MS <= found["queue_wait_ns"] <= found["request_ns"] <= 50 * MS + took_ns
    assert timed(front_end, NORMAL.index) == (0, 0)


def test_model_that_shares_a_row_is_counted_there(make_front_end: Callable[..., FrontEnd]) -> None:
    """The row is that of the name, not the place of the version."""
    front_end = make_front_end()
    model = front_end.models.find("pair")
    object.__setattr__(model, "row", _ring.OTHER_MODELS)
    submit(front_end)
    front_end.complete(Outcome.RESULT)
    refuse(front_end, message=request(output_names=["none"]))
    assert codes(front_end, row=_ring.OTHER_MODELS) == {"OK": 1}
    assert codes(front_end, _ring.NO_CLASS, _ring.OTHER_MODELS) == {"INVALID_ARGUMENT": 1}
    assert codes(front_end) == {}


def test_request_of_the_front_end_itself_is_not_counted(front_end: FrontEnd) -> None:
    """Whether it is answered, refused or given up: no caller has sent it."""
    front_end.submit()
    front_end.complete(Outcome.RESULT)
    front_end.submit().cancel()
    front_end.complete(Outcome.RESULT)
    with pytest.raises(RequestError):
        front_end.submit(request(model_name="none"))
    assert codes(front_end) == codes(front_end, _ring.NO_CLASS, _ring.NO_MODEL) == {}


# -- given up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["in a lane", "at the entrance"])
def test_request_whose_caller_left_is_cancelled_and_not_timed(front_end: FrontEnd, held: bool) -> None:
    """Also where the engine had begun with it."""
    message = request(priority=LOW.value)
    if held:
        front_end.hold_all_but_two()
        for _ in range(2):
            front_end.submit(message)
    ticket = submit(front_end, message=message, expires_ns=_ring.now_ns() + 60_000 * MS)
    assert front_end.entrance.holds == held
    ticket.cancel()
    front_end.complete(Outcome.RESULT)
    assert codes(front_end, LOW.index) == {"CANCELLED": 1}
    assert timed(front_end, LOW.index) == (0, 0)


def test_request_given_up_at_the_deadline_of_its_rpc_is_late(front_end: FrontEnd) -> None:
    """gRPC cancels it then; what it took until then counts."""
    now_ns = _ring.now_ns()
    submit(front_end, arrived_ns=now_ns, expires_ns=now_ns + 5 * MS).cancel()
    front_end.complete(Outcome.RESULT)
    assert codes(front_end) == {"DEADLINE_EXCEEDED": 1}
    assert timed(front_end) == (1, 1)


def test_leaving_after_the_answer_changes_nothing(front_end: FrontEnd) -> None:
    """The answer was given."""
    ticket = submit(front_end)
    front_end.complete(Outcome.RESULT)
    ticket.cancel()
    assert codes(front_end) == {"OK": 1}


# -- refused ------------------------------------------------------------------------------------


def test_refusal_before_the_class_is_known(front_end: FrontEnd) -> None:
    """Under the model that was asked for, if there is one, by that name or as the default."""
    refuse(front_end, message=request(output_names=["none"]))
    message = request(output_names=["none"])
    message.model_name = ""
    refuse(front_end, message=message)
    refuse(front_end, message=request(model_name="none"))
    assert codes(front_end, _ring.NO_CLASS) == {"INVALID_ARGUMENT": 2}
    assert codes(front_end, _ring.NO_CLASS, _ring.NO_MODEL) == {"NOT_FOUND": 1}
    assert shed(front_end, _ring.NO_CLASS) == shed(front_end, _ring.NO_CLASS, _ring.NO_MODEL) == {}
    assert timed(front_end, _ring.NO_CLASS) == (0, 0)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda it: setattr(it.admission, "draining", True), names.SHED_DRAINING),
        (lambda it: setattr(it.admission, "engine_lost", True), names.SHED_ENGINE),
    ],
)
def test_service_that_is_not_there_sheds(
    front_end: FrontEnd, spoil: Callable[[FrontEnd], None], reason: str
) -> None:
    """The model is known by its name; the class is not yet."""
    spoil(front_end)
    refuse(front_end)
    assert codes(front_end, _ring.NO_CLASS) == {"UNAVAILABLE": 1}
    assert shed(front_end, _ring.NO_CLASS) == {reason: 1}


def test_full_queue_and_full_slots_are_told_apart(make_front_end: Callable[..., FrontEnd]) -> None:
    """By class; neither has a duration."""
    front_end = make_front_end(slots=4)
    refuse(front_end, message=request(5))
    front_end.admission.change([*front_end.desk.limits], early_refusal=True, model_limits={0: 1})
    refuse(front_end, message=request(2))
    assert codes(front_end) == {"RESOURCE_EXHAUSTED": 2}
    assert shed(front_end) == {names.SHED_SLOTS: 1, names.SHED_QUEUE: 1}
    assert timed(front_end) == (0, 0)


def test_deadline_that_cannot_be_met_is_shed(front_end: FrontEnd) -> None:
    """It is over on arrival."""
    refuse(front_end, expires_ns=_ring.now_ns() - MS)
    assert codes(front_end) == {"DEADLINE_EXCEEDED": 1}
    assert shed(front_end) == {names.SHED_DEADLINE: 1}


def test_input_that_keeps_failing_is_shed(front_end: FrontEnd) -> None:
    """The model is asked twice, and then not any more."""
    for _ in range(2):
        submit(front_end)
        front_end.complete(Outcome.ERROR)
    refuse(front_end)
    assert codes(front_end) == {"INTERNAL": 3}
    assert shed(front_end) == {names.SHED_FAILING_INPUT: 1}
    assert timed(front_end) == (2, 2)


def test_refusal_at_the_door_of_the_port_has_no_model(front_end: FrontEnd) -> None:
    """By a token, and for too many cancelled calls."""
    front_end.desk.counts.refused(Unauthenticated("no token", reason="TOKEN_MISSING"))
    front_end.desk.counts.refused(errors.Overloaded("cancels", "too many", 1.0))
    assert codes(front_end, _ring.NO_CLASS, _ring.NO_MODEL) == {"UNAUTHENTICATED": 1, "RESOURCE_EXHAUSTED": 1}
    assert shed(front_end, _ring.NO_CLASS, _ring.NO_MODEL) == {names.SHED_CANCELS: 1}


@pytest.mark.parametrize(
    "error", [errors.InvalidRequest("x", "y"), errors.UnknownModel("x"), errors.ModelNotReady("x")]
)
def test_own_fault_is_not_shed(error: RequestError) -> None:
    """Nobody was protected by refusing it."""
    assert shed_reason(error) is None


def test_every_reason_has_its_place_in_the_arena() -> None:
    """There is room for all of them, and none is there twice."""
    assert len(set(names.SHED_REASONS)) == len(names.SHED_REASONS) <= _ring.REASONS
    assert len(CODES) == _ring.CODES
    assert [code.value[0] for code in sorted(grpc.StatusCode, key=lambda c: c.value[0])] == list(
        range(_ring.CODES)
    )


# -- traced -------------------------------------------------------------------------------------


class Tracer:
    """One that traces what it is told to."""

    def __init__(self, *trace_ids: int) -> None:
        self.trace_ids = list(trace_ids)

    def ended(self, *_: Any) -> int:
        return self.trace_ids.pop(0)


def test_traced_request_is_the_example_of_its_bucket(front_end: FrontEnd) -> None:
    """The newest of those that are traced; the others leave it there."""
    front_end.desk.tracer = Tracer(0, 0xAB, 0)  # type: ignore[assignment]
    for _ in range(3):
        submit(front_end, arrived_ns=_ring.now_ns() - 20_000 * MS, expires_ns=2**62)
        front_end.complete(Outcome.RESULT)
    ((bucket, trace_id, value_ns, at_ns),) = front_end.arena.native.request_counts(0, NORMAL.index)[
        "exemplars"
    ]
    assert (bucket, trace_id) == (len(_ring.duration_bounds_ns()), (0xAB).to_bytes(16))
    assert value_ns >= 20_000 * MS
    assert at_ns > 1_600_000_000_000_000_000
    assert timed(front_end) == (3, 3)
