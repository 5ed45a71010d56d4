"""Counts the requests of one front end: how each ended, how long it took, why it was refused."""

import time

import grpc

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.errors import DeadlineMissed, ModelFailed, Overloaded, RequestError, Unavailable
from scheduler.partition import Outcome, Submission
from server.models import ModelTable
from server.rpc.request import CheckedRequest
from server.status import code_of
from server.telemetry import names

CANCELLED = int(grpc.StatusCode.CANCELLED.value[0])
DEADLINE_EXCEEDED = int(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
_OK = int(grpc.StatusCode.OK.value[0])
_NEVER_DISPATCHED = -1
_LOST = Outcome.LOST  # a look at the members of an enum costs as much as the count
_POSITIONS = {reason: position for position, reason in enumerate(names.SHED_REASONS)}
_OF_SUBJECT = {"slots": names.SHED_SLOTS, "cancels": names.SHED_CANCELS}


class RequestCounts:
    """Belongs to the event loop of its front end. Counts outlive it; its successor goes on with them."""

    def __init__(self, arena: Arena, frontend: int, models: ModelTable) -> None:
        self._recorder = _ring.RequestRecorder(arena.native, frontend)
        self._ended = self._recorder.ended
        self._models = models

    def ended(
        self,
        request: CheckedRequest,
        submission: Submission,
        request_ns: int,
        result: bytes | RequestError,
        trace_id: int,
    ) -> None:
        """A request that was let in is answered.

        Args:
            request_ns: from arrival to answer.
            trace_id: of the trace that it is part of; 0: none.
        """
        code = _number(result) if isinstance(result, RequestError) else _OK
        row, class_index = request.model.row, submission.class_index
        waited_ns = _NEVER_DISPATCHED if submission.outcome is _LOST else submission.queue_wait_ns
        self._ended(row, class_index, code, request_ns, waited_ns)
        if trace_id:
            self._recorder.exemplar(row, class_index, request_ns, trace_id.to_bytes(16), time.time_ns())

    def given_up(self, request: CheckedRequest, submission: Submission, request_ns: int, code: int) -> None:
        """A request that was let in has ended after its caller had left.

        `code`: DEADLINE_EXCEEDED where the deadline of the RPC was why; how long others took, which are
        CANCELLED, says nothing about the service.
        """
        row, class_index = request.model.row, submission.class_index
        if code == CANCELLED:
            self._recorder.refused(row, class_index, code, _ring.NO_REASON)
        else:
            self._ended(row, class_index, code, request_ns, submission.queue_wait_ns)

    def refused(
        self, error: RequestError, request: CheckedRequest | None = None, name: str | None = None
    ) -> None:
        """A request was not let in.

        Args:
            request: None where it was refused before it was checked.
            name: the model that such a one names; None where not even that is known.
        """
        row, class_index = _ring.NO_MODEL, _ring.NO_CLASS
        if request is not None:
            row, class_index = request.model.row, request.priority.index
        elif name is not None:
            row = self._models.row(name)
        reason = shed_reason(error)
        position = _ring.NO_REASON if reason is None else _POSITIONS[reason]
        self._recorder.refused(row, class_index, _number(error), position)


def shed_reason(error: RequestError) -> str | None:
    """Why a request was refused to protect the rest; None where it is its own fault."""
    match error:
        case Overloaded():
            return _OF_SUBJECT.get(error.subject, names.SHED_QUEUE)
        case DeadlineMissed():
            return names.SHED_DEADLINE
        case Unavailable():
            return names.SHED_DRAINING if error.reason == names.SHED_DRAINING else names.SHED_ENGINE
        case ModelFailed():
            return names.SHED_FAILING_INPUT
        case _:
            return None


def _number(error: RequestError) -> int:
    return int(code_of(error).value[0])
