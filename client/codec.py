"""Between what callers hold (numpy arrays, dataclasses) and what goes over the wire (messages)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import grpc
import numpy as np
import numpy.typing as npt

from client.errors import PredictionError, invalid
from client.model_info import ModelInfo, TensorInfo, VersionInfo
from client.prediction import Prediction, Timing
from client.priority import parse_priority
from tickring.v1 import inference_pb2, model_pb2, types_pb2

# Also what a channel may send and take. Checked before the wire: a message over gRPC's limit would break
# the RPC stream, and with it every other request on it.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Room for names, shapes and framing beside the tensors' bytes.
_ENVELOPE_BYTES = 64 * 1024

# The wire is little-endian whatever this machine is.
DTYPES: Mapping[types_pb2.DataType, np.dtype[np.generic]] = MappingProxyType(
    {
        types_pb2.DATA_TYPE_BOOL: np.dtype(np.bool_),
        types_pb2.DATA_TYPE_UINT8: np.dtype(np.uint8),
        types_pb2.DATA_TYPE_INT8: np.dtype(np.int8),
        types_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
        types_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
        types_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
        types_pb2.DATA_TYPE_FP16: np.dtype("<f2"),
        types_pb2.DATA_TYPE_FP32: np.dtype("<f4"),
        types_pb2.DATA_TYPE_FP64: np.dtype("<f8"),
    }
)
_DATA_TYPES = {dtype: data_type for data_type, dtype in DTYPES.items()}
_ALLOWED_DTYPES = ", ".join(dtype.name for dtype in DTYPES.values())

_STATE_PREFIX = "MODEL_STATE_"


def write_request(
    request: inference_pb2.PredictRequest,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    model: str,
    version: str,
    priority: str | int | None,
    outputs: Sequence[str],
    request_id: str,
    routing_key: str,
) -> None:
    """Fills `request`, which is empty, in place: a streamed request then needs no second copy of its tensors.

    Raises `InvalidRequest` for what cannot be put on the wire; the server judges everything else.
    """
    if isinstance(outputs, str):
        raise invalid(f"outputs must be a sequence of names, not the one string {outputs!r}", "output_names")
    request.model_name = model
    request.model_version = version
    request.request_id = request_id
    request.routing_key = routing_key
    request.priority = parse_priority(priority)
    request.output_names.extend(outputs)
    size_bytes = 0
    for name, value in inputs.items():
        size_bytes += write_tensor(request.inputs.add(), name, value)
    if size_bytes > MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
        raise invalid(
            f"inputs have {size_bytes} bytes; a request may carry {MAX_MESSAGE_BYTES - _ENVELOPE_BYTES}",
            "inputs",
        )


def write_tensor(tensor: types_pb2.Tensor, name: str, value: npt.ArrayLike) -> int:
    """Fills `tensor`, which is empty, with `value` in row-major order; returns its size in bytes.

    The array keeps its dtype, so Python floats travel as FP64 and Python ints as INT64. Raises
    `InvalidRequest` for anything but numbers and booleans.
    """
    array = _as_array(name, value)
    data_type = _DATA_TYPES.get(array.dtype)
    if data_type is None:
        little = array.dtype.newbyteorder("<")
        data_type = _DATA_TYPES.get(little)
        if data_type is None:
            raise invalid(
                f"input {name!r} has dtype {array.dtype}; allowed: {_ALLOWED_DTYPES}",
                f"inputs[{name}].data_type",
            )
        array = array.astype(little)
    tensor.name = name
    tensor.data_type = data_type
    tensor.shape.extend(array.shape)
    tensor.data = array.tobytes()
    return array.nbytes


def read_tensor(tensor: types_pb2.Tensor) -> npt.NDArray[np.generic]:
    """The tensor as a read-only array, which owns its bytes.

    Raises `ValueError` where data type, shape and bytes do not fit together.
    """
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None:
        raise ValueError(f"output {tensor.name!r} has the unknown data type {tensor.data_type}")
    shape = tuple(tensor.shape)
    if min(shape, default=0) < 0:  # numpy would take one of them for "as many as there are"
        raise ValueError(f"output {tensor.name!r} has the shape {shape}")
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def read_response(response: inference_pb2.PredictResponse) -> Prediction:
    """The answer as arrays. Raises `PredictionError` (INTERNAL) where the server sent nonsense."""
    try:
        outputs = {tensor.name: read_tensor(tensor) for tensor in response.outputs}
    except ValueError as error:
        raise PredictionError(grpc.StatusCode.INTERNAL, f"malformed answer: {error}") from error
    timing = response.timing
    return Prediction(
        response.request_id,
        response.model_name,
        response.model_version,
        outputs,
        Timing(
            timing.queue_wait_ns,
            timing.compute_ns,
            timing.server_ns,
            timing.batch_size,
            timing.batch_bucket,
            timing.cache_hit,
        ),
    )


def read_model(model: model_pb2.Model) -> ModelInfo:
    """A model's description. Raises `PredictionError` (INTERNAL) for a data type unknown to this client."""
    return ModelInfo(
        name=model.name,
        description=model.description,
        format=model.format,
        is_default=model.is_default,
        max_rows=model.max_rows,
        versions=tuple(_read_version(version) for version in model.versions),
        inputs=tuple(_read_spec(spec) for spec in model.inputs),
        outputs=tuple(_read_spec(spec) for spec in model.outputs),
    )


def _read_version(version: model_pb2.ModelVersion) -> VersionInfo:
    try:
        state = model_pb2.ModelState.Name(version.state).removeprefix(_STATE_PREFIX)
    except ValueError:
        state = str(version.state)  # a newer server's
    return VersionInfo(version.version, state, version.sha256)


def _read_spec(spec: model_pb2.TensorSpec) -> TensorInfo:
    dtype = DTYPES.get(spec.data_type)
    if dtype is None:
        raise PredictionError(
            grpc.StatusCode.INTERNAL, f"tensor {spec.name!r} has the unknown data type {spec.data_type}"
        )
    return TensorInfo(spec.name, dtype, tuple(spec.shape), tuple(spec.max_shape), tuple(spec.min_shape))


def _as_array(name: str, value: npt.ArrayLike) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise invalid(f"input {name!r} is not an array: {error}", f"inputs[{name}]") from error
