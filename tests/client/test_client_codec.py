"""Arrays, options and answers across the wire."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client import Client, InvalidRequest, Priority, Timing
from client.codec import DTYPES, MAX_MESSAGE_BYTES, read_tensor, write_tensor
from client.priority import parse_priority
from tickring.v1 import inference_pb2, types_pb2

DTYPE_NAMES = [dtype.name for dtype in DTYPES.values()]


def sample(dtype: str) -> npt.NDArray[np.generic]:
    """Extremes and ordinary values, shape [2, 3]."""
    if dtype == "bool":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.startswith("float"):
        values = [[0.0, -1.5, math.inf], [math.nan, -math.inf, float(np.finfo(dtype).max)]]
        return np.array(values, dtype)
    info = np.iinfo(dtype)
    return np.array([[info.min, info.max, 0], [1, 2, 3]], dtype)


@pytest.mark.parametrize("method", ["predict", "predict_unary"])
@pytest.mark.parametrize("dtype", DTYPE_NAMES)
async def test_arrays_round_trip(client: Client, method: str, dtype: str) -> None:
    """Every element type comes back bit by bit, with its shape, read-only."""
    array = sample(dtype)
    prediction = await getattr(client, method)({"x": array}, model="echo")
    back = prediction["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


@pytest.mark.parametrize("method", ["predict", "predict_unary"])
async def test_large_arrays_fit(client: Client, method: str) -> None:
    """8 MiB each way, over gRPC's own limit of 4 MiB."""
    array = np.zeros((2, 1 << 20), np.float32)
    assert (await getattr(client, method)({"x": array}, model="echo"))["x"].shape == array.shape


def test_every_wire_type_has_a_dtype() -> None:
    """A data type added to the protocol must be added here."""
    assert set(DTYPES) == set(types_pb2.DataType.values()) - {types_pb2.DATA_TYPE_UNSPECIFIED}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2],
        np.zeros((0, 3), np.float32),
    ],
    ids=["big endian", "column major", "strided", "no rows"],
)
def test_any_memory_layout_is_sent_row_major_little_endian(array: npt.NDArray[np.generic]) -> None:
    """The wire has one layout, whatever the caller's is."""
    tensor = types_pb2.Tensor()
    assert write_tensor(tensor, "x", array) == array.nbytes == len(tensor.data)
    assert tensor.data == array.astype("<f4").tobytes("C")
    np.testing.assert_array_equal(read_tensor(tensor), array)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (types_pb2.Tensor(data_type=types_pb2.DATA_TYPE_FP32, shape=[2], data=b"1234"), "reshape"),
        (types_pb2.Tensor(data_type=types_pb2.DATA_TYPE_FP32, shape=[1], data=b"12345"), "multiple"),
        (types_pb2.Tensor(shape=[1], data=b"1"), "unknown data type 0"),
    ],
)
def test_a_malformed_tensor_is_refused(tensor: types_pb2.Tensor, complaint: str) -> None:
    """Data type, shape and bytes must fit together."""
    with pytest.raises(ValueError, match=complaint):
        read_tensor(tensor)


@pytest.mark.parametrize(
    ("arguments", "field", "allowed"),
    [
        ({"inputs": {"x": np.array(["a"])}}, "inputs[x].data_type", "float32"),
        ({"inputs": {"x": np.array([1 + 2j])}}, "inputs[x].data_type", "float32"),
        ({"inputs": {"x": [[1.0], [1.0, 2.0]]}}, "inputs[x]", "not an array"),
        ({"inputs": {"x": np.zeros(MAX_MESSAGE_BYTES, np.uint8)}}, "inputs", "may carry"),
        ({"inputs": {}, "priority": "urgent"}, "priority", "real_time_trading"),
        ({"inputs": {}, "priority": 6}, "priority", "1 to 5"),
        ({"inputs": {}, "outputs": "probs"}, "output_names", "sequence"),
        ({"inputs": {}, "timeout_s": 0.0}, "timeout", "over 0"),
        ({"inputs": {}, "timeout_s": math.nan}, "timeout", "over 0"),
        ({"inputs": {}, "timeout_s": math.inf}, "timeout", "over 0"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "predict_unary"])
async def test_bad_input_never_reaches_the_wire(
    method: str, arguments: dict[str, Any], field: str, allowed: str
) -> None:
    """What cannot be sent is refused here, naming the field and what is allowed; no server is needed."""
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequest) as raised:
            await getattr(client, method)(**arguments)
    assert raised.value.field == field
    assert allowed in raised.value.message


@pytest.mark.parametrize(
    ("priority", "wire"),
    [
        (None, types_pb2.PRIORITY_UNSPECIFIED),
        ("HIGH", types_pb2.PRIORITY_REAL_TIME_TRADING),
        ("normal", types_pb2.PRIORITY_BATCH_PROCESSING),
        ("low", types_pb2.PRIORITY_BACKGROUND_TASKS),
        ("4", types_pb2.PRIORITY_HISTORICAL_ANALYSIS),
        (5, types_pb2.PRIORITY_BACKGROUND_TASKS),
        *((member, types_pb2.Priority.Value(f"PRIORITY_{member.name}")) for member in Priority),
        *((member.name.lower(), types_pb2.Priority.Value(f"PRIORITY_{member.name}")) for member in Priority),
    ],
)
def test_priority_names(priority: str | int | None, wire: int) -> None:
    """Names in any case, aliases, numbers and members mean the same class."""
    assert parse_priority(priority) == wire


@pytest.mark.parametrize("method", ["predict", "predict_unary"])
async def test_every_option_reaches_the_server(client: Client, method: str) -> None:
    """The request on the wire holds what the caller said; the unary deadline is that of the RPC."""
    prediction = await getattr(client, method)(
        {"x": np.ones((1, 1), np.float32)},
        model="request",
        version="3",
        priority="high",
        timeout_s=2.5,
        outputs=("b", "a"),
        request_id="r1",
        routing_key="ES",
    )
    request = inference_pb2.PredictRequest.FromString(prediction["request"].tobytes())
    assert (request.model_name, request.model_version) == ("request", "3")
    assert request.priority == types_pb2.PRIORITY_REAL_TIME_TRADING
    assert list(request.output_names) == ["b", "a"]
    assert (request.request_id, request.routing_key) == ("r1", "ES")
    told_ns = {
        "predict": request.timeout.ToNanoseconds(),
        "predict_unary": prediction["remaining_ns"].item(),
    }[method]
    assert 1e9 < told_ns < 2.6e9  # gRPC rounds a little up


async def test_a_prediction_says_who_answered_and_how_long_it_took(client: Client) -> None:
    """Names and timing are the server's."""
    prediction = await client.predict({}, model="echo", request_id="r2")
    assert (prediction.request_id, prediction.model_name, prediction.model_version) == ("r2", "echo", "7")
    assert prediction.timing == Timing(11, 22, 44, 3, 4, False)
    assert isinstance(prediction.outputs, Mapping)
