"""Responses of models whose outputs have dynamic shapes: the rows themselves say which."""

from functools import lru_cache
from typing import Protocol

from scheduler.errors import ModelFailed
from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from server.rpc.dialect import Plan
from server.rpc.response import Shapes

# Different shapes of one model, number of rows and choice of outputs whose response layout is kept ready.
SHAPES_KEPT = 16


class MakePlan(Protocol):
    """The plan of a protocol for outputs of these shapes; None: as the signature has them."""

    def __call__(
        self, signature: ModelSignature, rows: int, outputs: tuple[int, ...], shapes: Shapes | None = None
    ) -> Plan:
        """See `ResponsePlan`."""
        ...


def plan_for(make: MakePlan, signature: ModelSignature, rows: int, outputs: tuple[int, ...]) -> Plan:
    """How the responses of one model, number of rows and choice of outputs are encoded."""
    if signature.output_header.size_bytes == 0:
        return make(signature, rows, outputs)
    return ShapedPlan(make, signature, rows, outputs)


class ShapedPlan:
    """Reads what shapes the outputs have, and leaves the rest to a plan for these."""

    def __init__(
        self, make: MakePlan, signature: ModelSignature, rows: int, outputs: tuple[int, ...]
    ) -> None:
        self._signature = signature
        self._rows = rows

        def plan_of(header: bytes) -> Plan:
            return make(signature, rows, outputs, signature.output_header.decode(header))

        self._plan_of = lru_cache(maxsize=SHAPES_KEPT)(plan_of)

    def encode(
        self, partition: Partition, submission: Submission, request_id: str, arrived_ns: int, now_ns: int
    ) -> bytes:
        """See `Plan`.

        Raises:
            ModelFailed: rows of the request that were in different batches have outputs of different
                shapes, which make no tensor.
        """
        signature = self._signature
        size_bytes = signature.output_header.size_bytes
        headers = partition.output(submission, 0, size_bytes)
        header = headers[:size_bytes]
        if headers != header * self._rows:
            raise ModelFailed(
                f"{signature.name} version {signature.version} gave rows of one request outputs of "
                "different shapes; they must follow from those of the inputs alone",
                reason="MODEL_ERROR",
            )
        return self._plan_of(header).encode(partition, submission, request_id, arrived_ns, now_ns)
