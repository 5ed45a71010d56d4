"""Checks a ModelInferRequest of KServe's protocol, in Triton's form, by the same rules as our own requests.

Data comes raw, one `raw_input_contents` for each input, or typed, in `contents`; never in both. Parameters
that mean nothing here are ignored, as Triton ignores them, but for those that would make the answer
another one than was asked for.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from google.protobuf.message import DecodeError

from scheduler.errors import InvalidRequest
from scheduler.priority import PriorityClass, parse_priority
from scheduler.signature import DataType
from server.models import ModelTable, ServedModel
from server.rpc.request import (
    MAX_QUOTED,
    CheckedRequest,
    FieldNames,
    GivenTensor,
    check_inputs,
    check_length,
    choose_outputs,
    default_priority,
)
from tickring.kserve.grpc_service_pb2 import InferParameter, ModelInferRequest

_RAW = FieldNames("inputs[{}].datatype", "raw_input_contents[{}]", "outputs[{}].name")
_TYPED = FieldNames("inputs[{}].datatype", "inputs[{}].contents", "outputs[{}].name")
# The field of InferTensorContents by the name of the type; FP16 has none.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_CLASSES = {str(member.value): member for member in PriorityClass}
_SHARED_MEMORY = "shared_memory_region"
_CLASSIFICATION = "classification"


def parse(raw: bytes) -> ModelInferRequest:
    """Raises InvalidRequest when the bytes are no ModelInferRequest."""
    try:
        return ModelInferRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("request", f"{len(raw)} bytes are not a ModelInferRequest") from error


def check(request: ModelInferRequest, models: ModelTable, metadata_priority: str | None) -> CheckedRequest:
    """Checks everything but room and deadline.

    Raises:
        UnknownModel, ModelNotReady: see `ModelTable.route`.
        InvalidRequest: anything else.
    """
    model = models.route(request.model_name, request.model_version)
    check_length("id", request.id)
    given, fields = _given(request)
    rows, payloads = check_inputs(given, model, fields)
    parameters = request.parameters
    return CheckedRequest(
        model=model,
        rows=rows,
        priority=_priority(parameters, metadata_priority, model),
        timeout_ns=_timeout_ns(parameters),
        payloads=payloads,
        outputs=choose_outputs(_output_names(request), model.signature, fields),
        request_id=request.id,
        exclusive=False,
    )


def _given(request: ModelInferRequest) -> tuple[list[GivenTensor], FieldNames]:
    raw = request.raw_input_contents
    if not raw:
        return [
            GivenTensor(tensor.name, tensor.datatype, tuple(tensor.shape), _typed(position, tensor))
            for position, tensor in enumerate(request.inputs)
        ], _TYPED
    inputs = request.inputs
    if len(raw) != len(inputs):
        _check_no_shared_memory(inputs)  # leaves no contents behind: say that and not a number
        raise InvalidRequest(
            "raw_input_contents", f"{len(raw)} for {len(inputs)} inputs, needed is one for each"
        )
    given: list[GivenTensor] = []
    for tensor, data in zip(inputs, raw, strict=True):
        if tensor.HasField("contents"):
            raise InvalidRequest(
                f"inputs[{len(given)}].contents", "set beside raw_input_contents, allowed is one of them"
            )
        given.append(GivenTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return given, _RAW


def _check_no_shared_memory(inputs: Iterable[ModelInferRequest.InferInputTensor]) -> None:
    for position, tensor in enumerate(inputs):
        _refuse_parameter(f"inputs[{position}]", tensor.parameters, _SHARED_MEMORY)


def _typed(position: int, tensor: ModelInferRequest.InferInputTensor) -> bytes:
    """The typed contents as raw bytes; nothing of a type that no model takes."""
    _refuse_parameter(f"inputs[{position}]", tensor.parameters, _SHARED_MEMORY)
    if tensor.datatype not in DataType.__members__:
        return b""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(
            f"inputs[{position}].contents", f"{tensor.datatype} has no typed form, send raw_input_contents"
        )
    values = getattr(tensor.contents, field)
    dtype = DataType[tensor.datatype].dtype
    try:
        return np.fromiter(values, dtype, len(values)).tobytes()
    except OverflowError as error:
        raise InvalidRequest(
            f"inputs[{position}].contents", f"{field} has a value that is no {tensor.datatype}"
        ) from error


def _output_names(request: ModelInferRequest) -> list[str]:
    for position, output in enumerate(request.outputs):
        if output.parameters:
            for name in (_SHARED_MEMORY, _CLASSIFICATION):
                _refuse_parameter(f"outputs[{position}]", output.parameters, name)
    return [output.name for output in request.outputs]


def _refuse_parameter(of: str, parameters: Mapping[str, InferParameter], name: str) -> None:
    if name in parameters:
        raise InvalidRequest(f"{of}.parameters.{name}", "not supported, tensors go as raw bytes only")


def _priority(
    parameters: Mapping[str, InferParameter], metadata_priority: str | None, model: ServedModel
) -> PriorityClass:
    if "priority" not in parameters:
        return default_priority(metadata_priority, model)
    value = parameters["priority"]
    text = value.string_param.strip() if value.HasField("string_param") else str(_integer("priority", value))
    if text in ("", "0"):
        return default_priority(metadata_priority, model)
    try:
        return _CLASSES.get(text) or parse_priority(text)
    except ValueError as error:
        raise InvalidRequest("parameters.priority", f"{error}; 0 is the default") from None


def _timeout_ns(parameters: Mapping[str, InferParameter]) -> int | None:
    if "timeout" not in parameters:
        return None
    value = parameters["timeout"]
    if value.HasField("string_param") and value.string_param[:MAX_QUOTED].isdecimal():
        timeout_us = int(value.string_param[:MAX_QUOTED])
    else:
        timeout_us = _integer("timeout", value)
    if timeout_us < 0:
        raise InvalidRequest("parameters.timeout", f"{timeout_us} us, allowed is 0 or more")
    return timeout_us * 1000 or None


def _integer(name: str, value: InferParameter) -> int:
    if value.HasField("uint64_param"):
        return value.uint64_param
    if value.HasField("int64_param"):
        return value.int64_param
    given = value.WhichOneof("parameter_choice") or "no value"
    raise InvalidRequest(f"parameters.{name}", f"{given} given, allowed is an integer")
