"""What a protocol of predictions has to say for itself; everything else is the same for all of them."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, TypeVar

from scheduler.errors import RequestError
from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from server.models import ModelTable
from server.rpc.request import CheckedRequest

# Different (model, rows, outputs) whose response layout a dialect keeps ready.
PLANS_KEPT = 512

Message = TypeVar("Message")
Mark = TypeVar("Mark")


class Plan(Protocol):
    """How the responses of one model, number of rows and choice of outputs are encoded."""

    def encode(
        self, partition: Partition, submission: Submission, request_id: str, arrived_ns: int, now_ns: int
    ) -> bytes:
        """The serialised response; reads the rows, so before their slots are released."""
        ...


class Dialect(ABC, Generic[Message, Mark]):
    """A protocol: its messages, and the mark by which an answer of an RPC stream names its request.

    Attributes:
        unary_method, stream_method: with the service, such as `tickring.v1.InferenceService/Predict`.
    """

    unary_method: ClassVar[str]
    stream_method: ClassVar[str]

    @abstractmethod
    def parse(self, raw: bytes) -> Message:
        """The request of a unary call. Raises InvalidRequest when the bytes are none."""

    @abstractmethod
    def check(self, message: Message, models: ModelTable, metadata_priority: str | None) -> CheckedRequest:
        """Checks everything but room and deadline. Raises RequestError."""

    @abstractmethod
    def model_name(self, message: Message) -> str:
        """The model that a request names, checked or not; empty where it names none."""

    @abstractmethod
    def plan(self, signature: ModelSignature, rows: int, outputs: tuple[int, ...]) -> Plan:
        """How the response will be encoded."""

    @abstractmethod
    def unwrap(self, raw: bytes) -> tuple[Mark, Message | RequestError]:
        """A message of an RPC stream: its mark, and the request or why there is none."""

    @abstractmethod
    def stream_response(self, mark: Mark, response: bytes) -> bytes:
        """An encoded response as a message of an RPC stream."""

    @abstractmethod
    def stream_error(self, mark: Mark, error: RequestError) -> bytes:
        """An error as a message of an RPC stream."""
