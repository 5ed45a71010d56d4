"""Requests put together as bytes are those that protobuf would have made."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.load.payloads import drawn, requests
from client.load.wire import stream_message, with_priority, with_timeout
from client.model_info import ModelInfo, TensorInfo
from tickring.v1 import inference_pb2, types_pb2


def request(data: bytes) -> inference_pb2.PredictRequest:
    tensor = types_pb2.Tensor(name="x", data_type=types_pb2.DATA_TYPE_FP32, shape=[1, 4], data=data)
    return inference_pb2.PredictRequest(model_name="m", inputs=[tensor])


@given(st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_stream_message(sequence: int, data: bytes) -> None:
    made = stream_message(sequence, request(data).SerializeToString())
    wanted = inference_pb2.PredictStreamRequest(sequence=sequence, request=request(data))
    assert inference_pb2.PredictStreamRequest.FromString(made) == wanted


@given(st.floats(1e-9, 86_400))
def test_timeout(seconds: float) -> None:
    read = inference_pb2.PredictRequest.FromString(
        with_timeout(request(b"1234").SerializeToString(), seconds)
    )
    assert read.timeout.ToNanoseconds() == max(1, int(seconds * 1e9))
    read.ClearField("timeout")
    assert read == request(b"1234")


@pytest.mark.parametrize("priority", types_pb2.Priority.values())
def test_priority(priority: types_pb2.Priority) -> None:
    read = inference_pb2.PredictRequest.FromString(with_priority(request(b"").SerializeToString(), priority))
    assert read.priority == priority


def model(*inputs: TensorInfo) -> ModelInfo:
    return ModelInfo("m", "", "torchscript", True, 64, (), inputs, ())


def test_drawn_inputs_fit_the_model() -> None:
    """Of every type, and with the smallest of sizes that requests choose."""
    inputs = drawn(
        model(
            TensorInfo("x", np.dtype(np.float32), (50, 60)),
            TensorInfo("ids", np.dtype(np.int64), (-1,), (512,), (3,)),
            TensorInfo("on", np.dtype(np.bool_), ()),
        ),
        seed=1,
    )
    assert {name: (array.dtype.name, array.shape[1:]) for name, array in inputs.items()} == {
        "x": ("float32", (50, 60)),
        "ids": ("int64", (3,)),
        "on": ("bool", ()),
    }
    assert np.isfinite(inputs["x"]).all()


def test_requests_go_through_the_rows_and_around() -> None:
    rows = np.arange(5, dtype=np.float32).reshape(5, 1)
    made = [inference_pb2.PredictRequest.FromString(each) for each in requests({"x": rows}, 2)]
    assert [np.frombuffer(each.inputs[0].data, "<f4").tolist() for each in made] == [
        [0, 1],
        [2, 3],
        [4, 0],
        [1, 2],
        [3, 4],
    ]
    assert [list(each.inputs[0].shape) for each in made] == [[2, 1]] * 5


def test_requests_say_what_is_asked_for() -> None:
    (raw, *_) = requests(
        {"x": np.zeros((1, 2), np.float32)}, 1, model="m", version="3", outputs=["y"], bypass_batching=True
    )
    read = inference_pb2.PredictRequest.FromString(raw)
    assert (read.model_name, read.model_version, list(read.output_names)) == ("m", "3", ["y"])
    assert read.options.bypass_batching


def test_big_rows_make_few_requests() -> None:
    """They are kept in memory, and told to every process."""
    big = np.zeros((64, 1 << 18), np.float32)
    assert len(requests({"x": big}, 1)) == 4
