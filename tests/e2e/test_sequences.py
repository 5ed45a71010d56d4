"""Models with dynamic shapes behind a real server: both protocols, the client, and the command."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from client import Client
from scheduler.signature import DataType
from tests.e2e import zoo
from tests.e2e.calls import Ending, Expected, array, exchange, request, streamed, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.service import Service, clean_environment
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2, model_pb2

Code = grpc.StatusCode
Array = npt.NDArray[Any]
SERVICE = "/inference.GRPCInferenceService"
LONGEST = 40
WIDTH = 3
# The length that one model raises on.
UNLUCKY = 13
# One front end and one instance, and a wait that lets calls of different lengths share a batch.
SETTINGS = {
    "TICKRING_SERVER__FRONTENDS": "1",
    "TICKRING_EXECUTOR__INSTANCES": "1",
    "TICKRING_SCHEDULER__ADAPTIVE": "false",
    "TICKRING_SCHEDULER__MAX_BATCH_SIZE": "16",
    "TICKRING_SCHEDULER__CLASSES__BATCH_PROCESSING__MAX_WAIT_MS": "20",
}
X: zoo.TensorRow = ("x", "FP32", [-1, WIDTH], {"max_shape": [LONGEST, WIDTH]})
RUNNING: zoo.TensorRow = ("running", "FP32", [-1, WIDTH], {"max_shape": [LONGEST, WIDTH]})
MEAN: zoo.TensorRow = ("mean", "FP64", [WIDTH])
STEPS: zoo.TensorRow = ("steps", "INT32", [])


class Sequences(nn.Module):
    """Of each sequence its mean, its sums up to each step, and its length; from a start of its own."""

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        running = x.cumsum(1) + start.reshape(-1, 1, 1).float()
        steps = torch.full([len(x)], x.size(1), dtype=torch.int32, device=x.device)
        return x.double().mean(1), running, steps


class Windows(nn.Module):
    """Sums of three neighbours: two steps shorter than its input, and none of fewer than three."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(1, 3, 1).sum(2)


class Fragile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) == 13:
            raise RuntimeError("an unlucky length")
        return x.sum(1)


@pytest.fixture(scope="module")
def service(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serves the models above, and one of fixed shape beside them."""
    repository = zoo.build(tmp_path_factory.mktemp("sequences"), "doubler")
    start: zoo.TensorRow = ("start", "INT16", [])
    zoo.add_model(repository, "sequence", zoo.archive(Sequences()), [X, start], [MEAN, RUNNING, STEPS])
    zoo.add_model(
        repository,
        "windows",
        zoo.archive(Windows()),
        [("x", "INT64", [-1], {"max_shape": [LONGEST], "min_shape": [3]})],
        [("y", "INT64", [-1], {"max_shape": [LONGEST - 2]})],
    )
    zoo.add_model(repository, "fragile", zoo.archive(Fragile()), [X], [("sum", "FP32", [WIDTH])])
    service = launch("--models", str(repository), settings=SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to them."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield channel


def sequences(rows: int, steps: int, seed: int = 0) -> tuple[Array, Array]:
    """Whole numbers, so that sums are exact in any order."""
    random = np.random.default_rng(1000 * seed + 50 * rows + steps)
    return (
        random.integers(-50, 50, (rows, steps, WIDTH)).astype(np.float32),
        random.integers(-99, 99, rows, np.int16),
    )


def sequence_request(x: Array, start: Array, **fields: Any) -> inference_pb2.PredictRequest:
    return request("sequence", tensor("start", start, DataType.INT16), tensor("x", x), **fields)


def check_sequences(outputs: dict[str, Array], x: Array, start: Array) -> None:
    """Fails unless these are the outputs of `Sequences`."""
    wanted = {
        "mean": x.astype(np.float64).mean(1),
        "running": x.cumsum(1) + start.reshape(-1, 1, 1).astype(np.float32),
        "steps": np.full(len(x), x.shape[1], np.int32),
    }
    assert outputs.keys() == wanted.keys()
    for name, output in outputs.items():
        np.testing.assert_allclose(output, wanted[name], rtol=1e-12, strict=True)


def outputs_of(response: inference_pb2.PredictResponse) -> dict[str, Array]:
    return {output.name: array(output) for output in response.outputs}


def infer_request(model: str, **inputs: Array) -> kserve.ModelInferRequest:
    """In KServe's protocol, with raw contents."""
    types = {np.dtype(kind.dtype): kind.name for kind in DataType}
    Input = kserve.ModelInferRequest.InferInputTensor  # noqa: N806
    return kserve.ModelInferRequest(
        model_name=model,
        inputs=[Input(name=name, datatype=types[x.dtype], shape=x.shape) for name, x in inputs.items()],
        raw_input_contents=[x.tobytes() for x in inputs.values()],
    )


async def infer(channel: grpc.aio.Channel, message: kserve.ModelInferRequest) -> Ending:
    return await unary(channel, message.SerializeToString(), method=f"{SERVICE}/ModelInfer")


def inferred(ending: Ending) -> dict[str, Array]:
    """The outputs of a ModelInfer. Fails when the call did."""
    assert ending.code is Code.OK, ending
    response = kserve.ModelInferResponse.FromString(ending.raw)
    return {
        output.name: np.frombuffer(raw, DataType[output.datatype].dtype).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


# -- answers ------------------------------------------------------------------------------------


async def test_many_lengths_at_once(channel: grpc.aio.Channel) -> None:
    """Each call gets its own answer, in both protocols, and calls of different lengths share batches."""
    asked = [sequences(1 + at % 3, 1 + 7 * at % LONGEST, at) for at in range(120)]
    batches = []

    async def ours(x: Array, start: Array) -> None:
        response = (await unary(channel, sequence_request(x, start))).response
        check_sequences(outputs_of(response), x, start)
        batches.append(response.timing.batch_size > len(x))

    async def theirs(x: Array, start: Array) -> None:
        message = infer_request("sequence", x=x, start=start)
        check_sequences(inferred(await infer(channel, message)), x, start)

    await asyncio.gather(*[(ours, theirs)[at % 2](*each) for at, each in enumerate(asked)])
    assert any(batches), "no two calls were in one batch"


async def test_lengths_may_differ_within_an_rpc_stream(channel: grpc.aio.Channel) -> None:
    asked = {number: sequences(2, number, number) for number in range(1, LONGEST + 1)}
    messages = [streamed(number, sequence_request(*each)) for number, each in asked.items()]
    answers, end = await exchange(channel, *messages)
    assert end.code is Code.OK
    assert answers.keys() == asked.keys()
    for number, answer in answers.items():
        check_sequences(outputs_of(answer.response), *asked[number])


async def test_one_output_of_a_request_of_more_rows_than_a_batch_has(channel: grpc.aio.Channel) -> None:
    """Its rows are in several batches, and one tensor in the end."""
    x, start = sequences(40, 17)
    response = (await unary(channel, sequence_request(x, start, output_names=["running"]))).response
    (output,) = response.outputs
    assert (output.name, list(output.shape)) == ("running", [40, 17, WIDTH])
    np.testing.assert_array_equal(array(output), x.cumsum(1) + start.reshape(-1, 1, 1), strict=False)


@pytest.mark.parametrize("steps", [3, 4, LONGEST])
async def test_an_output_may_be_shorter_than_its_input(channel: grpc.aio.Channel, steps: int) -> None:
    x = np.arange(2 * steps).reshape(2, steps) ** 2
    wanted = np.stack([np.convolve(row, [1, 1, 1], "valid") for row in x])
    response = (await unary(channel, request("windows", tensor("x", x, DataType.INT64)))).response
    np.testing.assert_array_equal(outputs_of(response)["y"], wanted, strict=True)
    typed = infer_request("windows", x=x)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.int64_contents.extend(x.reshape(-1).tolist())
    np.testing.assert_array_equal(inferred(await infer(channel, typed))["y"], wanted, strict=True)


async def test_a_length_that_the_model_raises_on_fails_alone(channel: grpc.aio.Channel) -> None:
    """All of that length fail, and none of the others that came with them."""
    lengths = [UNLUCKY if at % 4 == 0 else 1 + at % LONGEST for at in range(1, 33)]
    inputs = [np.full((1, length, WIDTH), at, np.float32) for at, length in enumerate(lengths)]
    endings = await asyncio.gather(*[unary(channel, request("fragile", tensor("x", x))) for x in inputs])
    for x, length, ending in zip(inputs, lengths, endings, strict=True):
        if length == UNLUCKY:
            assert (ending.code, ending.reason) == (Code.INTERNAL, "MODEL_ERROR")
        else:
            np.testing.assert_array_equal(outputs_of(ending.response)["sum"], x.sum(1))


async def test_a_model_of_fixed_shape_is_served_beside_them(channel: grpc.aio.Channel) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    response = (await unary(channel, request("doubler", tensor("x", x)))).response
    np.testing.assert_array_equal(outputs_of(response)["y"], 2 * x)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, LONGEST + 1, WIDTH), f"[1, {LONGEST + 1}, {WIDTH}]"),
        ((2, 0, WIDTH), f"[2, 0, {WIDTH}]"),
        ((1, 5, WIDTH + 1), f"[1, 5, {WIDTH + 1}]"),
        ((5, WIDTH), f"[5, {WIDTH}]"),
    ],
)
async def test_shapes_that_are_not_declared(
    channel: grpc.aio.Channel, shape: tuple[int, ...], said: str
) -> None:
    """Told with the value and what is allowed, in both protocols."""
    x = np.zeros(shape, np.float32)
    start = np.zeros(shape[0], np.int16)
    message = f"x is {said}, allowed is [n, 1 to {LONGEST}, {WIDTH}]"
    field = "inputs[1].shape"
    Expected(Code.INVALID_ARGUMENT, f"{field}: {message}", "INVALID_REQUEST", field).check(
        await unary(channel, sequence_request(x, start))
    )
    field = "inputs[0].shape"
    Expected(Code.INVALID_ARGUMENT, f"{field}: {message}", "INVALID_REQUEST", field).check(
        await infer(channel, infer_request("sequence", x=x, start=start))
    )


async def test_a_length_below_the_smallest(channel: grpc.aio.Channel) -> None:
    field = "inputs[0].shape"
    message = f"{field}: x is [1, 2], allowed is [n, 3 to {LONGEST}]"
    Expected(Code.INVALID_ARGUMENT, message, "INVALID_REQUEST", field).check(
        await unary(channel, request("windows", tensor("x", np.zeros((1, 2)), DataType.INT64)))
    )


# -- what is told of them -----------------------------------------------------------------------


async def test_what_is_dynamic_is_told(channel: grpc.aio.Channel) -> None:
    get_model = channel.unary_unary(
        "/tickring.v1.ModelService/GetModel",
        model_pb2.GetModelRequest.SerializeToString,
        model_pb2.GetModelResponse.FromString,
    )
    model = (await get_model(model_pb2.GetModelRequest(model_name="windows"))).model
    (x,), (y,) = model.inputs, model.outputs
    assert (list(x.shape), list(x.max_shape), list(x.min_shape)) == ([-1], [LONGEST], [3])
    assert (list(y.shape), list(y.max_shape), list(y.min_shape)) == ([-1], [LONGEST - 2], [])
    fixed = (await get_model(model_pb2.GetModelRequest(model_name="doubler"))).model.inputs[0]
    assert (list(fixed.shape), list(fixed.max_shape), list(fixed.min_shape)) == ([4], [], [])
    metadata = channel.unary_unary(
        f"{SERVICE}/ModelMetadata",
        kserve.ModelMetadataRequest.SerializeToString,
        kserve.ModelMetadataResponse.FromString,
    )
    told = await metadata(kserve.ModelMetadataRequest(name="sequence"))
    assert {t.name: list(t.shape) for t in (*told.inputs, *told.outputs)} == {
        "x": [-1, -1, WIDTH],
        "start": [-1],
        "mean": [-1, WIDTH],
        "running": [-1, -1, WIDTH],
        "steps": [-1],
    }


# -- client and command -------------------------------------------------------------------------


async def test_the_client_takes_any_length(service: Service) -> None:
    async with Client(service.target) as served:
        info = await served.model("sequence")
        assert (info.inputs[0].shape, info.inputs[0].max_shape, info.inputs[0].min_shape) == (
            (-1, WIDTH),
            (LONGEST, WIDTH),
            (1, WIDTH),
        )
        for steps in (1, 9, LONGEST):
            x, start = sequences(2, steps)
            prediction = await served.predict({"x": x, "start": start}, model="sequence")
            check_sequences(dict(prediction.outputs), x, start)


def tickring(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client.cli", *arguments, "--target", service.target],
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_takes_any_length(service: Service, tmp_path: Path) -> None:
    """One item without a batch dimension, several with one, and lines of numbers."""
    x = np.arange(10, dtype=np.int64) ** 2
    wanted = np.convolve(x, [1, 1, 1], "valid").tolist()
    np.save(tmp_path / "one.npy", x)
    np.save(tmp_path / "two.npy", np.stack([x, x]))
    (tmp_path / "two.csv").write_text("\n".join([",".join(map(str, x.tolist()))] * 2))
    for name, rows in (("one.npy", 1), ("two.npy", 2), ("two.csv", 2)):
        done = tickring(service, "predict", "--model", "windows", "--input", str(tmp_path / name), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outputs"]["y"] == [wanted] * rows


def test_the_command_names_what_is_allowed(service: Service, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros(2, np.int64))
    done = tickring(service, "predict", "--model", "windows", "--input", str(tmp_path / "short.npy"))
    assert done.returncode == 2
    assert f"[3 to {LONGEST}] or [n, 3 to {LONGEST}]" in done.stderr
