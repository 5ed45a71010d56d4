"""Every RPC of the server, good messages to it, and how a call to it may end."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from scheduler.signature import DataType
from server.auth import Role, allowed
from tests.e2e.calls import tensor, window_request, windows
from tests.fuzz.tokens import AUTHORIZATION, TOKEN
from tests.fuzz.wire import Field, parse
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2, model_pb2, types_pb2

MODEL = "sp500_direction"
# These are told by our own code, with a reason where they are an INTERNAL.
REFUSED = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"})
LIMITED = frozenset({"RESOURCE_EXHAUSTED"})
LATE = frozenset({"DEADLINE_EXCEEDED"})
MODEL_FAILED = frozenset({"INTERNAL MODEL_ERROR", "INTERNAL NON_FINITE_OUTPUT"})

_INPUT = kserve.ModelInferRequest.InferInputTensor
_PARAMETER = kserve.InferParameter


@dataclass(frozen=True)
class Rpc:
    """One RPC.

    Attributes:
        seeds: good messages, as trees.
        allowed: how a call with a token, or a message of an RPC stream, may end, beside OK.
        is_open: whether it takes no token.
    """

    path: str
    client_streams: bool
    server_streams: bool
    request: Descriptor
    response: type[Message]
    seeds: Sequence[list[Field]]
    allowed: frozenset[str]
    is_open: bool
    weight: float

    @property
    def is_prediction(self) -> bool:
        """Whether it runs a model."""
        return self.path in _PREDICTIONS


def rpcs() -> list[Rpc]:
    """All RPCs of the services that the server is known to serve."""
    files = (inference_pb2, model_pb2, kserve, health_pb2, reflection_pb2)
    return [
        _rpc(method)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def _rpc(method: MethodDescriptor) -> Rpc:
    path = f"/{method.containing_service.full_name}/{method.name}"
    good = [message.SerializeToString() for message in _good(path, method.input_type)]
    prediction = path in _PREDICTIONS
    roles = allowed(path)
    return Rpc(
        path=path,
        client_streams=method.client_streaming,
        server_streams=method.server_streaming,
        request=method.input_type,
        response=GetMessageClass(method.output_type),
        seeds=[parse(raw, method.input_type) for raw in good],
        allowed=(
            REFUSED
            | LIMITED
            | LATE
            | (MODEL_FAILED if prediction else frozenset())
            | (frozenset({"PERMISSION_DENIED"}) if roles == frozenset({Role.ADMIN}) else frozenset())
        ),
        is_open=roles is None,
        # A call with a stream carries some twenty messages.
        weight=1.0 if not prediction or method.client_streaming else 20.0,
    )


def _good(path: str, request: Descriptor) -> Iterator[Message]:
    if path in _PREDICTIONS:
        yield from _PREDICTIONS[path]()
        return
    yield GetMessageClass(request)()
    for texts in ((MODEL, "1"), ("unknown", "2"), ("a text", "another")):
        filled = GetMessageClass(request)()
        _fill(filled, texts)
        yield filled
    # What reflection knows of, so that it does answer.
    if request is reflection_pb2.ServerReflectionRequest.DESCRIPTOR:
        for fields in _REFLECTION:
            yield reflection_pb2.ServerReflectionRequest(**fields)


_REFLECTION: Sequence[Mapping[str, Any]] = (
    {"list_services": ""},
    {"file_by_filename": "tickring/v1/inference.proto"},
    {"file_containing_symbol": "inference.GRPCInferenceService"},
    {"file_containing_symbol": "tickring.v1.PredictRequest"},
    {"all_extension_numbers_of_type": "google.protobuf.MessageOptions"},
    {"all_extension_numbers_of_type": "tickring.v1.PredictRequest"},
    {
        "file_containing_extension": reflection_pb2.ExtensionRequest(
            containing_type="google.protobuf.FieldOptions", extension_number=1004
        )
    },
)


def _fill(message: Any, texts: Sequence[str], depth: int = 0) -> None:
    """Every field, but one of each oneof."""
    chosen = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None:
            if oneof.name in chosen:
                continue
            chosen.add(oneof.name)
        _fill_field(message, field, texts, depth)


def _fill_field(message: Any, field: FieldDescriptor, texts: Sequence[str], depth: int) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        value = inner.fields_by_name["value"]
        entries = getattr(message, field.name)
        if value.message_type is None:
            entries[texts[0]] = _scalar(value, texts)
        elif depth < 3:
            _fill(entries[texts[0]], texts, depth + 1)
    elif inner is not None:
        if depth < 3:
            part = getattr(message, field.name)
            _fill(part.add() if field.is_repeated else part, texts, depth + 1)
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field, texts))
    else:
        setattr(message, field.name, _scalar(field, texts))


def _scalar(field: FieldDescriptor, texts: Sequence[str]) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = texts["version" in field.name]
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return 1.5
        case _:
            return 1


def _predictions() -> Iterator[inference_pb2.PredictRequest]:
    yield window_request()
    yield window_request(3, request_id="three", priority=types_pb2.PRIORITY_REAL_TIME_TRADING)
    full = window_request(
        2,
        model_version="1",
        request_id="full",
        routing_key="ES",
        priority=types_pb2.PRIORITY_BACKGROUND_TASKS,
        output_names=["features", "regression_mean"],
    )
    full.timeout.seconds = 20
    full.timeout.nanos = 1
    full.options.bypass_batching = True
    yield full
    yield inference_pb2.PredictRequest(
        inputs=[tensor("window", windows(1)[:, :2]), tensor("k", [1, 2], DataType.INT64)]
    )
    yield window_request(1, output_names=["no output"], model_version="2")
    # Finite, as the model wants it, and more than it can compute with.
    yield inference_pb2.PredictRequest(
        model_name=MODEL, inputs=[tensor("window", np.full((1, 50, 60), 3e38))]
    )
    yield window_request(1, priority=types_pb2.PRIORITY_MARKET_DATA_UPDATE)


def _streamed() -> Iterator[inference_pb2.PredictStreamRequest]:
    for sequence, request in enumerate(_predictions(), 1):
        yield inference_pb2.PredictStreamRequest(sequence=sequence, request=request)


def _infer_requests() -> Iterator[kserve.ModelInferRequest]:
    for rows in (1, 3):
        yield kserve.ModelInferRequest(
            model_name=MODEL,
            inputs=[_INPUT(name="window", datatype="FP32", shape=[rows, 50, 60])],
            raw_input_contents=[windows(rows).tobytes()],
        )
    typed = kserve.InferTensorContents(fp32_contents=windows(1).ravel())
    yield kserve.ModelInferRequest(
        model_name=MODEL,
        model_version="1",
        id="typed",
        inputs=[_INPUT(name="window", datatype="FP32", shape=[1, 50, 60], contents=typed)],
        outputs=[
            kserve.ModelInferRequest.InferRequestedOutputTensor(
                name="features", parameters={"binary_data": _PARAMETER(bool_param=True)}
            )
        ],
        parameters={
            "priority": _PARAMETER(string_param="high"),
            "timeout": _PARAMETER(uint64_param=20_000_000),
            "desk": _PARAMETER(double_param=1.5),
        },
    )
    every_type = kserve.InferTensorContents()
    _fill(every_type, ("a", "b"))
    for datatype in ("BOOL", "INT8", "UINT8", "INT64", "FP16", "FP64", "BYTES"):
        yield kserve.ModelInferRequest(
            model_name=MODEL,
            inputs=[_INPUT(name="window", datatype=datatype, shape=[1], contents=every_type)],
            parameters={"priority": _PARAMETER(int64_param=1), "timeout": _PARAMETER(string_param="100000")},
        )


_PREDICTIONS = {
    "/tickring.v1.InferenceService/Predict": _predictions,
    "/tickring.v1.InferenceService/PredictStream": _streamed,
    "/inference.GRPCInferenceService/ModelInfer": _infer_requests,
    "/inference.GRPCInferenceService/ModelStreamInfer": _infer_requests,
}


def draw_metadata(rng: random.Random) -> list[tuple[str, str | bytes]]:
    """What a call brings beside its message; the raw streams send what gRPC would not.

    As a rule the campaign's token is the first of it.
    """
    bad = ("Bearer x", "Bearer", "Basic " + "y" * 500, "", f"bearer  {TOKEN}")
    found: list[tuple[str, str | bytes]] = [AUTHORIZATION]
    if rng.random() < 0.03:
        found = [("authorization", rng.choice(bad))] if rng.random() < 0.7 else []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5))):
        match rng.randrange(5):
            case 0:
                priorities = (
                    "high",
                    "REAL_TIME_TRADING",
                    "5",
                    "0",
                    "6",
                    "-1",
                    "",
                    " low ",
                    "none",
                    "1" * 300,
                )
                found.append(("tickring-priority", rng.choice(priorities)))
            case 1:
                found.append((f"x-{rng.randrange(1000)}-bin", rng.randbytes(rng.choice((0, 1, 7, 300)))))
            case 2:
                found.append(("traceparent", "00-" + rng.randbytes(rng.choice((0, 16, 24))).hex() + "-zz"))
            case 3:
                name = rng.choice(("grpc-trace-bin", "grpc-tags-bin", "grpc-status-details-bin"))
                found.append((name, rng.randbytes(rng.choice((0, 1, 200)))))
            case _:
                text = "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.choice((0, 1, 100))))
                found.append((f"x-{rng.randrange(1000)}", text.strip()))
    if rng.random() < 0.01:
        found.append(("x-long", "z" * rng.choice((8_000, 15_000, 16_384, 40_000))))
    return found
