"""Every data type from a manifest through slots and model to the answer, in our protocol and in KServe's."""

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scheduler.signature import DataType
from tests.e2e import calls, zoo
from tests.e2e.calls import array, request, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.service import Service
from tickring.kserve import grpc_service_pb2 as kserve

Code = grpc.StatusCode
Array = npt.NDArray[Any]
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
SETTINGS = {"TICKRING_SERVER__FRONTENDS": "1"}
MAX_ROWS = 5
# The field of InferTensorContents; FP16 has none.
TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
# An input of every type, of shapes whose rows have different lengths.
SHAPES = {
    DataType.BOOL: [3],
    DataType.UINT8: [2, 2],
    DataType.INT8: [],
    DataType.INT16: [5],
    DataType.INT32: [1, 3],
    DataType.INT64: [],
    DataType.FP16: [7],
    DataType.FP32: [2],
    DataType.FP64: [],
}
MIXED_INPUTS: list[zoo.TensorRow] = [
    ("flags", "BOOL", [3]),
    ("level", "INT16", []),
    ("weights", "FP16", [2, 2]),
]
MIXED_OUTPUTS: list[zoo.TensorRow] = [
    ("share", "FP64", []),
    ("codes", "UINT8", [3]),
    ("signs", "INT8", [2, 2]),
    ("levels", "INT32", [2]),
    ("positive", "BOOL", []),
]


class Mirror(nn.Module):
    """Its inputs in reverse order, as they are: what comes back is what arrived."""

    def forward(
        self,
        t0: Tensor,
        t1: Tensor,
        t2: Tensor,
        t3: Tensor,
        t4: Tensor,
        t5: Tensor,
        t6: Tensor,
        t7: Tensor,
        t8: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return t8, t7, t6, t5, t4, t3, t2, t1, t0


class TypedMirror(nn.Module):
    """The same without FP16."""

    def forward(
        self, t0: Tensor, t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor, t5: Tensor, t6: Tensor, t7: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return t7, t6, t5, t4, t3, t2, t1, t0


class Mixed(nn.Module):
    """Three inputs of three types, five outputs of five others, each with something of a row."""

    def forward(
        self, flags: Tensor, level: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return (
            flags.double().mean(1),
            (flags.to(torch.uint8) * 200),
            weights.sign().to(torch.int8),
            torch.stack([level.int() * 1000, -level.int()], 1),
            level > 0,
        )


@pytest.fixture(scope="module")
def service(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serves the models above."""
    repository = tmp_path_factory.mktemp("types")
    rows = [(f"t_{kind.name}", kind.name, shape) for kind, shape in SHAPES.items()]
    zoo.add_model(repository, "mirror", zoo.archive(Mirror()), rows, _outputs_of(rows))
    rows = [row for row in rows if row[1] in TYPED]
    zoo.add_model(repository, "typed", zoo.archive(TypedMirror()), rows, _outputs_of(rows))
    zoo.add_model(repository, "mixed", zoo.archive(Mixed()), MIXED_INPUTS, MIXED_OUTPUTS)
    service = launch("--models", str(repository), settings=SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to them."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield channel


def _outputs_of(inputs: Sequence[tuple[str, str, list[int]]]) -> list[zoo.TensorRow]:
    return [(name.replace("t_", "y_"), kind, shape) for name, kind, shape in reversed(inputs)]


def values(kind: DataType, shape: Sequence[int], random: np.random.Generator) -> Array:
    """Anything of a type, from its smallest to its largest, but NaN and infinity, which no input may have."""
    if kind is DataType.BOOL:
        return random.random(shape) < 0.5
    array = np.frombuffer(random.bytes(math.prod(shape) * kind.itemsize), kind.dtype).reshape(shape)
    return np.where(np.isfinite(array), array, np.array(-0.0, kind.dtype)) if kind.is_float else array


@st.composite
def mirrored(draw: st.DrawFn) -> dict[DataType, Array]:
    """An array of every type, of one number of rows, in any order."""
    rows = draw(st.integers(1, MAX_ROWS))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return {kind: values(kind, (rows, *SHAPES[kind]), random) for kind in draw(st.permutations(list(SHAPES)))}


def infer_input(name: str, kind: DataType, data: Array, *, typed: bool) -> Any:
    """As a KServe client sends it."""
    message = kserve.ModelInferRequest.InferInputTensor(name=name, datatype=kind.name, shape=data.shape)
    if typed:
        getattr(message.contents, TYPED[kind.name]).extend(data.reshape(-1).tolist())
    return message


async def infer(channel: grpc.aio.Channel, message: kserve.ModelInferRequest) -> dict[str, Array]:
    """The outputs of one ModelInfer."""
    ending = await unary(channel, message.SerializeToString(), method=MODEL_INFER)
    assert ending.code is Code.OK, ending
    response = kserve.ModelInferResponse.FromString(ending.raw)
    return {
        output.name: np.frombuffer(raw, DataType[output.datatype].dtype).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def same(got: Array, wanted: Array) -> None:
    """Bit by bit, so that -0.0 is not 0.0."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert got.tobytes() == wanted.tobytes()


any_server_in_a_fixture = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@any_server_in_a_fixture
@given(inputs=mirrored())
async def test_every_type_comes_back_as_it_was_sent(service: Service, inputs: dict[DataType, Array]) -> None:
    """Inputs in any order, all values of all types."""
    async with grpc.aio.insecure_channel(service.target) as channel:
        tensors = [tensor(f"t_{kind.name}", data, kind) for kind, data in inputs.items()]
        response = (await unary(channel, request("mirror", *tensors))).response
    assert [output.name for output in response.outputs] == [f"y_{kind.name}" for kind in reversed(SHAPES)]
    for output in response.outputs:
        same(array(output), inputs[DataType[output.name.removeprefix("y_")]])


@any_server_in_a_fixture
@given(inputs=mirrored())
async def test_every_type_comes_back_over_kserve(service: Service, inputs: dict[DataType, Array]) -> None:
    """As raw contents."""
    message = kserve.ModelInferRequest(
        model_name="mirror",
        inputs=[infer_input(f"t_{kind.name}", kind, data, typed=False) for kind, data in inputs.items()],
        raw_input_contents=[data.tobytes() for data in inputs.values()],
    )
    async with grpc.aio.insecure_channel(service.target) as channel:
        outputs = await infer(channel, message)
    for kind, data in inputs.items():
        same(outputs[f"y_{kind.name}"], data)


def mixed_inputs(rows: int) -> tuple[Array, Array, Array]:
    """Different in every row."""
    random = np.random.default_rng(rows)
    return (
        random.random((rows, 3)) < 0.5,
        random.integers(-300, 300, rows, np.int16),
        random.standard_normal((rows, 2, 2)).astype(np.float16),
    )


def mixed_outputs(flags: Array, level: Array, weights: Array) -> dict[str, Array]:
    """What `Mixed` makes of them."""
    return {
        "share": flags.astype(np.float64).mean(1),
        "codes": flags.astype(np.uint8) * np.uint8(200),
        "signs": np.sign(weights).astype(np.int8),
        "levels": np.stack([level.astype(np.int32) * 1000, -level.astype(np.int32)], 1),
        "positive": level > 0,
    }


@pytest.mark.parametrize("rows", [1, 3])
async def test_inputs_and_outputs_of_eight_types(channel: grpc.aio.Channel, rows: int) -> None:
    """Inputs not in the manifest's order, one of them a scalar; outputs in it."""
    flags, level, weights = mixed_inputs(rows)
    response = (
        await unary(
            channel,
            request(
                "mixed",
                tensor("weights", weights, DataType.FP16),
                tensor("flags", flags, DataType.BOOL),
                tensor("level", level, DataType.INT16),
            ),
        )
    ).response
    wanted = mixed_outputs(flags, level, weights)
    assert [output.name for output in response.outputs] == list(wanted)
    for output in response.outputs:
        np.testing.assert_array_equal(array(output), wanted[output.name], strict=True)


async def test_some_outputs_in_the_order_asked_for(channel: grpc.aio.Channel) -> None:
    """In both protocols."""
    flags, level, weights = mixed_inputs(2)
    wanted = mixed_outputs(flags, level, weights)
    asked = ["positive", "share", "codes"]
    tensors = [
        tensor("flags", flags, DataType.BOOL),
        tensor("level", level, DataType.INT16),
        tensor("weights", weights, DataType.FP16),
    ]
    response = (await unary(channel, request("mixed", *tensors, output_names=asked))).response
    assert [output.name for output in response.outputs] == asked
    theirs = await infer(
        channel,
        kserve.ModelInferRequest(
            model_name="mixed",
            inputs=[
                infer_input("weights", DataType.FP16, weights, typed=False),
                infer_input("level", DataType.INT16, level, typed=False),
                infer_input("flags", DataType.BOOL, flags, typed=False),
            ],
            raw_input_contents=[weights.tobytes(), level.tobytes(), flags.tobytes()],
            outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in asked],
        ),
    )
    assert list(theirs) == asked
    for output in response.outputs:
        np.testing.assert_array_equal(array(output), wanted[output.name], strict=True)
        np.testing.assert_array_equal(theirs[output.name], wanted[output.name], strict=True)


@any_server_in_a_fixture
@given(inputs=mirrored())
async def test_every_type_comes_back_from_typed_contents(
    service: Service, inputs: dict[DataType, Array]
) -> None:
    """But FP16, which has none: a model with an input of that type takes raw contents only."""
    message = kserve.ModelInferRequest(
        model_name="typed",
        inputs=[
            infer_input(f"t_{kind.name}", kind, data, typed=True)
            for kind, data in inputs.items()
            if kind.name in TYPED
        ],
    )
    async with grpc.aio.insecure_channel(service.target) as channel:
        outputs = await infer(channel, message)
    assert outputs.keys() == {f"y_{name}" for name in TYPED}
    for name, output in outputs.items():
        same(output, inputs[DataType[name.removeprefix("y_")]])


async def test_a_byte_that_is_no_bool_is_refused(channel: grpc.aio.Channel) -> None:
    """What a model makes of one is anybody's guess."""
    flags, level, weights = mixed_inputs(1)
    bad = tensor("flags", flags, DataType.BOOL)
    bad.data = b"\x00\x02\x01"
    tensors = [tensor("level", level, DataType.INT16), bad, tensor("weights", weights, DataType.FP16)]
    calls.Expected(
        Code.INVALID_ARGUMENT,
        "inputs[1].data: flags[0, 1] is the byte 2, allowed are 0 and 1",
        "INVALID_REQUEST",
        "inputs[1].data",
    ).check(await unary(channel, request("mixed", *tensors)))
