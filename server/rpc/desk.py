"""Takes requests in and gives tickets out, whatever protocol they came in.

The path of a request in this process: parse → check → admit → copy rows into slots → push; then, from
the completion gate's callback: encode → free the slots → answer. Nothing awaits between the stamp of a
key and its push, so the keys of a lane only grow.
"""

from collections.abc import Callable, Mapping
from typing import Any

from scheduler import _ring
from scheduler.entrance import Entrance
from scheduler.errors import DeadlineMissed, ModelFailed, RequestCancelled, RequestError, Unavailable
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import ClassLimits
from server.admission import ENGINE_RETRY_S, Admission
from server.limits import AT_DEADLINE_S
from server.model_books import ModelBooks
from server.models import ModelTable
from server.offenders import Offenders
from server.rpc.dialect import Dialect, Message, Plan
from server.rpc.request import CheckedRequest
from server.status import reason_of
from server.telemetry.counting import CANCELLED, DEADLINE_EXCEEDED, RequestCounts
from server.telemetry.storms import StormLog
from server.telemetry.trace_context import Origin
from server.telemetry.tracer import Tracer

Answer = Callable[["Ticket", "bytes | RequestError"], None]

_NO_RPC = Origin("")
_AT_DEADLINE_NS = int(AT_DEADLINE_S * 1e9)


class Ticket:
    """A request between its push and its answer. `answer` is called exactly once, from the event loop."""

    __slots__ = (
        "_answer",
        "_desk",
        "_done_ns",
        "_expires_ns",
        "_given_up",
        "_origin",
        "_plan",
        "arrived_ns",
        "request",
        "submission",
    )

    def __init__(
        self,
        desk: "Desk",
        request: CheckedRequest,
        plan: Plan,
        arrived_ns: int,
        expires_ns: int | None,
        done_ns: int,
        answer: Answer,
        origin: Origin,
    ) -> None:
        self._desk = desk
        self._done_ns = done_ns  # what admission expected at best
        self._expires_ns = expires_ns
        self._given_up = 0  # the code of an RPC that has ended already
        self._plan = plan
        self._answer = answer
        self._origin = origin
        self.request = request
        self.arrived_ns = arrived_ns
        self.submission: Submission | None = None

    def ended(self, submission: Submission) -> None:
        """The rows are back: encodes what is in them, then frees their slots."""
        desk = self._desk
        now_ns = _ring.now_ns()
        result: bytes | RequestError
        if submission.outcome is Outcome.RESULT:
            try:
                result = self._plan.encode(
                    desk.partition, submission, self.request.request_id, self.arrived_ns, now_ns
                )
            except ModelFailed as error:  # its rows fit no one response
                result = error
            request = self.request
            desk.admission.delivered(request.model.index, request.priority.index, self._done_ns, now_ns)
        else:
            result = self._error(submission)
            if submission.outcome in (Outcome.ERROR, Outcome.NON_FINITE):
                desk.note_failure(self.request, submission)
            desk.note_storm(result, self.request, self._origin)
        desk.books.ended(submission, self.arrived_ns, now_ns)
        trace_id = 0
        if desk.tracer is not None:
            trace_id = desk.tracer.ended(
                self._origin, self.request, submission, self.arrived_ns, now_ns, result
            )
        if self._given_up:
            desk.counts.given_up(self.request, submission, now_ns - self.arrived_ns, self._given_up)
        elif self._origin.method:
            desk.counts.ended(self.request, submission, now_ns - self.arrived_ns, result, trace_id)
        self.submission = None
        desk.partition.release(submission)
        self._answer(self, result)

    def cancel(self) -> None:
        """The caller left. The rows still come back, unserved if the engine has not taken them."""
        if self.submission is None:
            return
        if self._origin.method:
            # gRPC cancels a call at its deadline, too.
            late = self._expires_ns is not None and _ring.now_ns() > self._expires_ns - _AT_DEADLINE_NS
            self._given_up = DEADLINE_EXCEEDED if late else CANCELLED
        self._desk.entrance.cancel(self.submission)

    def _error(self, submission: Submission) -> RequestError:
        model = self.request.model.signature
        match submission.outcome:
            case Outcome.EXPIRED:
                waited_ms = submission.queue_wait_ns / 1e6
                return DeadlineMissed(
                    f"after {waited_ms:.1f} ms in the queue the deadline could not be met any more",
                    reason="EXPIRED_IN_QUEUE",
                )
            case Outcome.CANCELLED:
                return RequestCancelled("the caller cancelled the request")
            case Outcome.LOST:
                return Unavailable(
                    "the engine was lost while it held this request",
                    reason="ENGINE_LOST",
                    retry_after_s=ENGINE_RETRY_S,
                )
            case Outcome.NON_FINITE:
                return ModelFailed(
                    f"{model.name} version {model.version} answered NaN or Inf for this request",
                    reason="NON_FINITE_OUTPUT",
                )
            case _:
                return ModelFailed(
                    f"{model.name} version {model.version} failed on this request; "
                    f"the server's log has the cause under batch {submission.batch}",
                    reason="MODEL_ERROR",
                )


class Desk:
    """Where the calls of every protocol meet the scheduler.

    Attributes:
        limits: those in use, by class index.
        tracer: None where nothing is traced.
        storms: None where nobody hears of them.
    """

    def __init__(
        self,
        partition: Partition,
        entrance: Entrance,
        admission: Admission,
        models: ModelTable,
        limits: tuple[ClassLimits, ...],
        books: ModelBooks,
        counts: RequestCounts,
    ) -> None:
        self.partition = partition
        self.entrance = entrance
        self.admission = admission
        self.books = books
        self.counts = counts
        self._models = models
        self.limits = limits
        self._offenders = Offenders()
        self.tracer: Tracer | None = None
        self.storms: StormLog | None = None

    def change(
        self,
        limits: tuple[ClassLimits, ...],
        *,
        bulk_quantum_ns: int,
        early_refusal: bool,
        model_limits: Mapping[int, int],
    ) -> None:
        """Goes by these from now on; what has been let in keeps its key and its deadline.

        `bulk_quantum_ns`: see `Entrance`; `model_limits`: see `Admission`; `early_refusal`: see both.
        """
        self.limits = limits
        self.entrance.change(limits, bulk_quantum_ns, early_refusal=early_refusal)
        self.admission.change(limits, early_refusal, model_limits)

    def move_in(self, owners: Mapping[int, int]) -> None:
        """By place, who has it from now on; see `ModelBooks.assign`. Of somebody new nothing is known."""
        moved = [self.books.assign(place, owner) for place, owner in owners.items()]
        if any(moved):
            self._offenders = Offenders()

    def note_failure(self, request: CheckedRequest, submission: Submission) -> None:
        """Remembers the inputs of a request that the model failed on. Before its slots are released."""
        inputs = [self.partition.input(submission, p.offset, p.item_bytes) for p in request.payloads]
        self._offenders.failed(request.model.index, inputs, _ring.now_ns())

    def submit(
        self,
        dialect: Dialect[Message, Any],
        message: Message,
        arrived_ns: int,
        expires_ns: int | None,
        metadata_priority: str | None,
        answer: Answer,
        origin: Origin = _NO_RPC,
    ) -> Ticket:
        """Admits a request and hands it to an engine.

        Args:
            dialect: of the protocol that `message` belongs to.
            expires_ns: the instant of the RPC's own deadline; None where it has none.
            origin: the RPC; without one, nothing is traced or counted.

        Raises:
            RequestError: refused; nothing was taken and `answer` will not be called.
        """
        request: CheckedRequest | None = None
        try:
            self.admission.check_serving()
            request = dialect.check(message, self._models, metadata_priority)
            class_index = request.priority.index
            limits = self.limits[class_index]
            deadline_ns = self._deadline_ns(request, arrived_ns, expires_ns, limits)
            model = request.model.index
            now_ns = _ring.now_ns()
            self._offenders.check(model, [payload.data for payload in request.payloads], now_ns)
            admitted = self.admission.check(model, class_index, request.rows, deadline_ns, now_ns)
        except RequestError as error:
            self.refused(origin, request, arrived_ns, error, dialect.model_name(message))
            raise

        partition = self.partition
        plan = dialect.plan(request.model.signature, request.rows, request.outputs)
        ticket = Ticket(self, request, plan, arrived_ns, expires_ns, admitted.done_ns, answer, origin)
        submission = partition.reserve(request.rows, model, class_index, ticket.ended)
        ticket.submission = submission
        for payload in request.payloads:
            partition.write_input(submission, payload.offset, payload.item_bytes, payload.data)
        self.entrance.enter(
            submission,
            engine=admitted.engine,
            now_ns=_ring.now_ns(),
            arrived_ns=arrived_ns,
            deadline_ns=admitted.deadline_ns,
            exclusive=request.exclusive,
        )
        return ticket

    def refused(
        self,
        origin: Origin,
        request: CheckedRequest | None,
        arrived_ns: int,
        error: RequestError,
        name: str | None = None,
    ) -> None:
        """Tells of a request that was not let in.

        Args:
            request: None where it was refused before it was checked.
            name: the model that it names; None where even that is not known.
        """
        if origin.method:
            self.counts.refused(error, request, name)
        self.note_storm(error, request, origin)
        if self.tracer is not None:
            self.tracer.refused(origin, request, arrived_ns, error)

    def note_storm(self, error: RequestError, request: CheckedRequest | None, origin: Origin) -> None:
        """Counts a request that got no result, for the log."""
        if self.storms is not None and not isinstance(error, RequestCancelled):
            self.storms.note(reason_of(error), request.priority.label if request else "", origin)

    @staticmethod
    def _deadline_ns(
        request: CheckedRequest, arrived_ns: int, expires_ns: int | None, limits: ClassLimits
    ) -> int:
        timeout_ns = request.timeout_ns
        if timeout_ns is None and expires_ns is None:
            return arrived_ns + limits.default_timeout_ns
        own_ns = _ring.NO_DEADLINE if timeout_ns is None else arrived_ns + timeout_ns
        rpc_ns = _ring.NO_DEADLINE if expires_ns is None else expires_ns
        # A Duration reaches further than the arena's 64 bits of nanoseconds.
        return min(own_ns, rpc_ns, _ring.NO_DEADLINE)
