"""tickring.v1.InferenceService: Predict and PredictStream."""

from functools import lru_cache, partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from scheduler.errors import InvalidRequest, RequestError
from scheduler.signature import ModelSignature
from server.models import ModelTable
from server.rpc.calls import Calls
from server.rpc.desk import Desk
from server.rpc.dialect import PLANS_KEPT, Dialect, Plan
from server.rpc.request import CheckedRequest, check, parse
from server.rpc.response import ResponsePlan, stream_response
from server.rpc.shaped_plan import plan_for
from server.status import to_status
from tickring.v1 import inference_pb2

SERVICE = "tickring.v1.InferenceService"


class PredictDialect(Dialect[inference_pb2.PredictRequest, int]):
    """Marked by `sequence`."""

    unary_method = f"{SERVICE}/Predict"
    stream_method = f"{SERVICE}/PredictStream"

    def __init__(self) -> None:
        self._plan = lru_cache(maxsize=PLANS_KEPT)(partial(plan_for, ResponsePlan))

    def parse(self, raw: bytes) -> inference_pb2.PredictRequest:
        """See `Dialect`."""
        return parse(raw)

    def check(
        self, message: inference_pb2.PredictRequest, models: ModelTable, metadata_priority: str | None
    ) -> CheckedRequest:
        """See `Dialect`."""
        return check(message, models, metadata_priority)

    def model_name(self, message: inference_pb2.PredictRequest) -> str:
        """See `Dialect`."""
        return message.model_name

    def plan(self, signature: ModelSignature, rows: int, outputs: tuple[int, ...]) -> Plan:
        """See `Dialect`."""
        return self._plan(signature, rows, outputs)

    def unwrap(self, raw: bytes) -> tuple[int, inference_pb2.PredictRequest | RequestError]:
        """See `Dialect`."""
        try:
            message = inference_pb2.PredictStreamRequest.FromString(raw)
        except DecodeError:
            return 0, InvalidRequest("message", f"{len(raw)} bytes are not a PredictStreamRequest")
        if not message.HasField("request"):
            return message.sequence, InvalidRequest("request", "missing")
        return message.sequence, message.request

    def stream_response(self, mark: int, response: bytes) -> bytes:
        """See `Dialect`."""
        return stream_response(mark, response)

    def stream_error(self, mark: int, error: RequestError) -> bytes:
        """See `Dialect`."""
        return inference_pb2.PredictStreamResponse(sequence=mark, error=to_status(error)).SerializeToString()


class InferenceService:
    """The handlers of tickring.v1.InferenceService, on raw bytes."""

    def __init__(self, desk: Desk, max_in_flight_per_stream: int) -> None:
        self._calls = Calls(desk, PredictDialect(), max_in_flight_per_stream)

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        # No (de)serialisers: gRPC would answer bytes that do not parse with INTERNAL.
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Predict": grpc.unary_unary_rpc_method_handler(self._calls.unary),
                "PredictStream": grpc.stream_stream_rpc_method_handler(self._calls.stream),
            },
        )

    def change(self, max_in_flight_per_stream: int) -> None:
        """For RPC streams that begin from now on."""
        self._calls.max_in_flight = max_in_flight_per_stream

    def drain(self) -> None:
        """See `Calls.drain`."""
        self._calls.drain()
