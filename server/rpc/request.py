"""Checks requests against the model they name: what all protocols share, and a PredictRequest.

Trusts nothing in them. Every refusal names the field, the value and what is allowed. Messages carry at
most the first `MAX_QUOTED` characters of a client's text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from scheduler import _ring
from scheduler.errors import InvalidRequest
from scheduler.priority import PriorityClass, parse_priority
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.models import ModelTable, ServedModel
from tickring.v1 import inference_pb2, types_pb2

MAX_ID_BYTES = 128
MAX_QUOTED = 64
_TYPE_NAMES = {member.proto_value: member.name for member in DataType}


@dataclass(slots=True)
class GivenTensor:
    """An input as it came, in no protocol's own form. `data_type` is the name of one, or any other text."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a protocol calls the parts of a request; `{}` is the position of an input or output."""

    data_type: str
    data: str
    output: str


@dataclass(slots=True)
class Payload:
    """One input tensor and where each of its rows goes inside a slot's input row."""

    offset: int
    item_bytes: int
    data: bytes


@dataclass(slots=True)
class CheckedRequest:
    """A request that can be admitted as it is.

    Attributes:
        timeout_ns: the request's own; None where it gives none.
        outputs: indexes into the signature's outputs, in the order asked for.
        exclusive: must not share a batch with other requests.
    """

    model: ServedModel
    rows: int
    priority: PriorityClass
    timeout_ns: int | None
    payloads: list[Payload]
    outputs: tuple[int, ...]
    request_id: str
    exclusive: bool


_FIELDS = FieldNames(data_type="inputs[{}].data_type", data="inputs[{}].data", output="output_names[{}]")


def parse(raw: bytes) -> inference_pb2.PredictRequest:
    """Raises InvalidRequest when the bytes are no PredictRequest."""
    try:
        return inference_pb2.PredictRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("request", f"{len(raw)} bytes are not a PredictRequest") from error


def check(
    request: inference_pb2.PredictRequest, models: ModelTable, metadata_priority: str | None
) -> CheckedRequest:
    """Checks everything but room and deadline.

    Raises:
        UnknownModel, ModelNotReady: see `ModelTable.route`.
        InvalidRequest: anything else.
    """
    model = models.route(request.model_name, request.model_version)
    check_length("request_id", request.request_id)
    check_length("routing_key", request.routing_key)
    given = [
        GivenTensor(tensor.name, _type_name(tensor.data_type), tuple(tensor.shape), tensor.data)
        for tensor in request.inputs
    ]
    rows, payloads = check_inputs(given, model, _FIELDS)
    return CheckedRequest(
        model=model,
        rows=rows,
        priority=_priority(request, metadata_priority, model),
        timeout_ns=_timeout_ns(request),
        payloads=payloads,
        outputs=choose_outputs(request.output_names, model.signature, _FIELDS),
        request_id=request.request_id,
        exclusive=request.options.bypass_batching,
    )


def check_inputs(
    tensors: Sequence[GivenTensor], model: ServedModel, fields: FieldNames
) -> tuple[int, list[Payload]]:
    """The number of rows, and what goes into their slots. Raises InvalidRequest."""
    signature = model.signature
    specs = signature.input_by_name
    is_dynamic = signature.is_dynamic
    payloads: list[Payload] = []
    seen: set[str] = set()
    rows = 0
    for position, tensor in enumerate(tensors):
        name = tensor.name
        known = specs.get(name)
        if known is None:
            raise InvalidRequest(
                f"inputs[{position}].name", f"unknown input {quote(name)}, allowed is {', '.join(specs)}"
            )
        spec, offset = known
        if name in seen:
            raise InvalidRequest(f"inputs[{position}].name", f"input {name} is given twice, allowed is once")
        seen.add(name)
        if tensor.data_type != spec.data_type.name:
            raise InvalidRequest(
                fields.data_type.format(position),
                f"{name} is {_plain(tensor.data_type)}, allowed is {spec.data_type.name}",
            )
        shape = tensor.shape
        if is_dynamic:
            spec = _of_shape(spec, shape, f"inputs[{position}].shape")
        _check_shape(f"inputs[{position}].shape", name, shape, spec.shape, model.max_rows)
        if rows not in (0, shape[0]):
            raise InvalidRequest(
                f"inputs[{position}].shape",
                f"{name} has {shape[0]} rows, {tensors[0].name} has {rows}; allowed is one number",
            )
        rows = shape[0]
        data = tensor.data
        if len(data) != rows * spec.item_bytes:
            raise InvalidRequest(
                fields.data.format(position),
                f"{name} has {len(data)} bytes, "
                f"{spec.data_type.name} {_shape(shape)} needs {rows * spec.item_bytes}",
            )
        if signature.finite_inputs and spec.data_type.is_float:
            _check_finite(fields.data.format(position), name, data, spec.data_type, shape)
        elif spec.data_type is DataType.BOOL:
            _check_bools(fields.data.format(position), name, data, shape)
        payloads.append(Payload(offset, spec.item_bytes, data))
    if len(seen) != len(specs):
        missing = ", ".join(name for name in specs if name not in seen)
        raise InvalidRequest("inputs", f"missing {missing}, needed are {', '.join(specs)}")
    if is_dynamic:
        payloads.append(_header(tensors, rows, signature))
    return rows, payloads


def _of_shape(spec: TensorSpec, shape: tuple[int, ...], field: str) -> TensorSpec:
    """The input as it is in this request. Raises InvalidRequest for a shape that it may not have."""
    if not shape or not spec.allows(shape[1:]):
        raise _wrong_shape(field, spec.name, shape, spec.allowed_sizes)
    return spec.of_shape(shape[1:])


def _header(tensors: Sequence[GivenTensor], rows: int, signature: ModelSignature) -> Payload:
    """What tells the engine the shapes of these inputs, which have been checked: the same in each row."""
    shapes = {tensor.name: tensor.shape[1:] for tensor in tensors}
    header = signature.input_header.encode([shapes[spec.name] for spec in signature.inputs])
    return Payload(0, len(header), header * rows)


def _check_shape(
    field: str, name: str, shape: tuple[int, ...], item_shape: tuple[int, ...], max_rows: int
) -> None:
    if shape[1:] != item_shape or not shape:
        raise _wrong_shape(field, name, shape, map(str, item_shape))
    if not 1 <= shape[0] <= max_rows:
        raise InvalidRequest(field, f"{name} has {shape[0]} rows, allowed are 1 to {max_rows}")


def _wrong_shape(field: str, name: str, shape: tuple[int, ...], allowed: Iterable[str]) -> InvalidRequest:
    return InvalidRequest(field, f"{name} is {_shape(shape)}, allowed is [{', '.join(['n', *allowed])}]")


def _check_bools(field: str, name: str, data: bytes, shape: tuple[int, ...]) -> None:
    """What a model makes of a byte that is neither depends on which of its bits an operator looks at."""
    if data.translate(None, b"\0\1"):
        values = np.frombuffer(data, np.uint8)
        first = int(np.argmax(values > 1))
        raise InvalidRequest(
            field, f"{_element(name, first, shape)} is the byte {values[first]}, allowed are 0 and 1"
        )


def _element(name: str, at: int, shape: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(str(i) for i in np.unravel_index(at, shape))}]"


def _check_finite(field: str, name: str, data: bytes, data_type: DataType, shape: tuple[int, ...]) -> None:
    if _ring.all_finite(data, data_type.itemsize):
        return
    values = np.frombuffer(data, dtype=data_type.dtype)
    finite = np.isfinite(values)
    first = int(np.argmin(finite))
    raise InvalidRequest(
        field,
        f"{_element(name, first, shape)} is {values[first]}, allowed are finite values; "
        f"{(~finite).sum()} are not",
    )


def choose_outputs(wanted: Sequence[str], signature: ModelSignature, fields: FieldNames) -> tuple[int, ...]:
    """The indexes of these outputs, in this order; of all where none is named. Raises InvalidRequest."""
    if not wanted:
        return signature.all_outputs
    names = [spec.name for spec in signature.outputs]
    chosen: list[int] = []
    for position, name in enumerate(wanted):
        if name not in names:
            raise InvalidRequest(
                fields.output.format(position),
                f"unknown output {quote(name)}, allowed is {', '.join(names)}",
            )
        index = names.index(name)
        if index in chosen:
            raise InvalidRequest(
                fields.output.format(position), f"output {name} is asked for twice, allowed is once"
            )
        chosen.append(index)
    return tuple(chosen)


def _priority(
    request: inference_pb2.PredictRequest, metadata_priority: str | None, model: ServedModel
) -> PriorityClass:
    value = request.priority
    if value != types_pb2.PRIORITY_UNSPECIFIED:
        try:
            return PriorityClass(value)
        except ValueError:
            raise InvalidRequest("priority", f"{value} is no Priority, allowed is 1 to 5") from None
    return default_priority(metadata_priority, model)


def default_priority(metadata_priority: str | None, model: ServedModel) -> PriorityClass:
    """Of a request that names none itself. Raises InvalidRequest."""
    if metadata_priority is not None:
        try:
            return parse_priority(metadata_priority)
        except ValueError as error:
            raise InvalidRequest("metadata tickring-priority", str(error)) from None
    return model.default_class


def _timeout_ns(request: inference_pb2.PredictRequest) -> int | None:
    if not request.HasField("timeout"):
        return None
    timeout = request.timeout
    timeout_ns = timeout.seconds * 1_000_000_000 + timeout.nanos
    if timeout_ns <= 0:
        raise InvalidRequest("timeout", f"{timeout_ns / 1e9:g} s, allowed is more than 0")
    return int(timeout_ns)


def check_length(field: str, text: str) -> None:
    """Raises InvalidRequest for an id or key that is too long."""
    # Characters first: cheap, and an upper bound is all that most ids need.
    if len(text) * 4 > MAX_ID_BYTES and (size := len(text.encode())) > MAX_ID_BYTES:
        raise InvalidRequest(field, f"{size} bytes, allowed are {MAX_ID_BYTES}")


def _type_name(value: int) -> str:
    return _TYPE_NAMES.get(value) or ("unspecified" if value == 0 else f"unknown type {value}")


def _plain(text: str) -> str:
    return text[:MAX_QUOTED] if text.replace(" ", "").isalnum() else quote(text)


def _shape(shape: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, shape[:8]))
    return f"[{shown}{', …' if len(shape) > 8 else ''}]"


def quote(text: str) -> str:
    """A client's text as an error repeats it."""
    return repr(text[:MAX_QUOTED]) + ("…" if len(text) > MAX_QUOTED else "")
