"""Requests to a model with dynamic shapes, from their check to the response; the engine is the test's own."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import _ring
from scheduler.errors import InvalidRequest, ModelFailed
from scheduler.partition import Outcome
from scheduler.priority import DEFAULT_LIMITS
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.rpc import kserve_models, kserve_request
from server.rpc.desk import Ticket
from server.rpc.kserve import InferDialect
from server.rpc.request import CheckedRequest, check
from tests.server.world import MAX_ROWS, FrontEnd, served, table, tensor
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2

# Rows that fit the arena of a `FrontEnd`.
GRID = ModelSignature(
    name="grid",
    version=1,
    inputs=(
        TensorSpec("x", DataType.FP32, (-1, -1), (4, 4), (1, 2)),
        TensorSpec("k", DataType.INT64, ()),
    ),
    outputs=(
        TensorSpec("y", DataType.FP32, (-1, 2), (8, 2)),
        TensorSpec("z", DataType.FP64, ()),
    ),
)
# Only its inputs are dynamic.
FLAT = ModelSignature(
    name="grid", version=1, inputs=GRID.inputs, outputs=(TensorSpec("z", DataType.FP64, ()),)
)
MODELS = table(served(GRID), default="grid")


def grid_request(*shape: int, x: DataType = DataType.FP32, **fields: object) -> inference_pb2.PredictRequest:
    """x counts up, so that its bytes do not depend on its shape; k is the row."""
    inputs = [
        tensor("k", np.arange(shape[0]), DataType.INT64),
        tensor("x", np.arange(np.prod(shape)).reshape(shape), x),
    ]
    return inference_pb2.PredictRequest(model_name="grid", inputs=inputs, **fields)  # type: ignore[arg-type]


def infer_request(*shape: int) -> kserve.ModelInferRequest:
    """The same in KServe's protocol."""
    Input = kserve.ModelInferRequest.InferInputTensor  # noqa: N806
    return kserve.ModelInferRequest(
        model_name="grid",
        inputs=[
            Input(name="k", datatype="INT64", shape=shape[:1]),
            Input(name="x", datatype="FP32", shape=shape),
        ],
        raw_input_contents=[
            np.arange(shape[0], dtype="<i8").tobytes(),
            np.arange(np.prod(shape), dtype="<f4").tobytes(),
        ],
    )


def payload_bytes(checked: CheckedRequest) -> dict[int, tuple[int, bytes]]:
    """What goes where in each row: by offset, how many bytes and all rows of them."""
    return {payload.offset: (payload.item_bytes, payload.data) for payload in checked.payloads}


# -- what is let in -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 4, 4), (3, 2, 3), (MAX_ROWS, 1, 4)])
def test_rows_carry_their_shape(shape: tuple[int, int, int]) -> None:
    """In front, as int32; each tensor has the room of its largest shape, of which it takes what it needs."""
    wanted = {
        0: (8, np.array([shape[1:]] * shape[0], "<i4").tobytes()),
        64: (4 * shape[1] * shape[2], np.arange(np.prod(shape), dtype="<f4").tobytes()),
        128: (8, np.arange(shape[0], dtype="<i8").tobytes()),
    }
    checked = check(grid_request(*shape), MODELS, None)
    assert checked.rows == shape[0]
    assert payload_bytes(checked) == wanted
    assert payload_bytes(kserve_request.check(infer_request(*shape), MODELS, None)) == wanted


ALLOWED = "allowed is [n, 1 to 4, 2 to 4]"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 2), f"x is [1, 5, 2], {ALLOWED}"),
        ((1, 1, 1), f"x is [1, 1, 1], {ALLOWED}"),
        ((1, 0, 2), f"x is [1, 0, 2], {ALLOWED}"),
        ((2, 4, 4, 1), f"x is [2, 4, 4, 1], {ALLOWED}"),
        ((2, 4), f"x is [2, 4], {ALLOWED}"),
        ((1,), f"x is [1], {ALLOWED}"),
        ((9, 1, 2), "x has 9 rows, allowed are 1 to 8"),
        ((0, 1, 2), "x has 0 rows, allowed are 1 to 8"),
    ],
)
def test_shapes_that_are_not_declared_are_refused(shape: tuple[int, ...], message: str) -> None:
    """With the value and what is allowed, in both protocols."""
    ours, theirs = grid_request(*shape), infer_request(*shape)
    del ours.inputs[0], theirs.inputs[0], theirs.raw_input_contents[0]
    with pytest.raises(InvalidRequest, match=re.escape(message)) as raised:
        check(ours, MODELS, None)
    assert raised.value.field == "inputs[0].shape"
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        kserve_request.check(theirs, MODELS, None)


@pytest.mark.parametrize("shape", [[1, -1, -1], [1, -1, 4], [1, 2**62, 2], [-1, 4, 4], []])
def test_sizes_that_nothing_has_are_refused(shape: list[int]) -> None:
    """Those of the manifest too: it says what may come, a request what has."""
    message = grid_request(1, 4, 4)
    message.inputs[1].shape[:] = shape
    with pytest.raises(InvalidRequest, match=r"x (is|has) .*allowed (is|are)"):
        check(message, MODELS, None)


def test_too_few_bytes_are_told_with_the_shape() -> None:
    message = grid_request(2, 2, 3)
    message.inputs[1].data = b"\0" * 47
    with pytest.raises(InvalidRequest, match=r"x has 47 bytes, FP32 \[2, 2, 3\] needs 48"):
        check(message, MODELS, None)


def test_a_value_that_is_not_finite_is_found_where_it_is() -> None:
    message = grid_request(2, 2, 3)
    values = np.zeros((2, 2, 3), "<f4")
    values[1, 0, 2] = np.nan
    message.inputs[1].data = values.tobytes()
    with pytest.raises(InvalidRequest, match=r"x\[1, 0, 2\] is nan"):
        check(message, MODELS, None)


# -- what comes back ----------------------------------------------------------------------------


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    """Serves the model."""
    front_end = FrontEnd(models=MODELS)
    yield front_end
    front_end.close()


def write_outputs(front_end: FrontEnd, ticket: Ticket, steps: list[int]) -> None:
    """What an engine does: so many steps for each row of the request."""
    assert ticket.submission is not None
    for number, (slot, count) in enumerate(zip(ticket.submission.slots, steps, strict=True)):
        row = front_end.arena.output_rows[slot]
        row[:4] = np.frombuffer(GRID.output_header.encode([(count, 2), ()]), np.uint8)
        values = np.arange(count * 2, dtype="<f4") + 100 * number
        row[64 : 64 + values.nbytes] = values.view(np.uint8)
        row[128:136] = np.array([number], "<f8").view(np.uint8)


@settings(deadline=None)
@given(rows=st.integers(1, MAX_ROWS), steps=st.integers(0, 8), only=st.sampled_from([[], ["y"], ["z", "y"]]))
def test_a_response_has_the_shape_that_the_engine_says(rows: int, steps: int, only: list[str]) -> None:
    """Nothing of what the slots held before comes with it."""
    front_end = FrontEnd(models=MODELS)
    front_end.arena.output_rows[:] = 0xEE
    ticket = front_end.submit(grid_request(rows, 2, 2, output_names=only))
    write_outputs(front_end, ticket, [steps] * rows)
    front_end.complete(Outcome.RESULT)
    front_end.close()
    (answer,) = front_end.answers
    assert isinstance(answer, bytes)
    outputs = {output.name: output for output in inference_pb2.PredictResponse.FromString(answer).outputs}
    assert list(outputs) == (only or ["y", "z"])
    y = outputs["y"]
    assert list(y.shape) == [rows, steps, 2]
    wanted = [np.arange(steps * 2, dtype="<f4") + 100 * number for number in range(rows)]
    assert y.data == np.array(wanted, "<f4").tobytes()
    if "z" in outputs:
        assert (list(outputs["z"].shape), len(outputs["z"].data)) == ([rows], 8 * rows)


def test_a_response_in_kserves_form(front_end: FrontEnd) -> None:
    answers: list[object] = []
    now_ns, message = _ring.now_ns(), infer_request(2, 2, 2)
    ticket = front_end.desk.submit(
        InferDialect(), message, now_ns, None, None, lambda _, result: answers.append(result)
    )
    write_outputs(front_end, ticket, [3, 3])
    front_end.complete(Outcome.RESULT)
    (answer,) = answers
    assert isinstance(answer, bytes)
    response = kserve.ModelInferResponse.FromString(answer)
    assert [(output.name, list(output.shape)) for output in response.outputs] == [
        ("y", [2, 3, 2]),
        ("z", [2]),
    ]
    assert [len(raw) for raw in response.raw_output_contents] == [48, 16]


def test_rows_of_different_shapes_are_the_models_error(front_end: FrontEnd) -> None:
    """They make no tensor. The slots are free again, and the next request is served."""
    write_outputs(front_end, front_end.submit(grid_request(2, 2, 2)), [3, 4])
    front_end.complete(Outcome.RESULT)
    (answer,) = front_end.answers
    assert isinstance(answer, ModelFailed)
    assert answer.reason == "MODEL_ERROR"
    assert "gave rows of one request outputs of different shapes" in str(answer)
    assert front_end.partition.free_slots == front_end.slots
    write_outputs(front_end, front_end.submit(grid_request(2, 2, 2)), [3, 3])
    front_end.complete(Outcome.RESULT)
    assert isinstance(front_end.answers[1], bytes)


def test_fixed_outputs_have_no_header() -> None:
    """Where only inputs are dynamic."""
    assert FLAT.output_offsets == (0,)
    front_end = FrontEnd(models=table(served(FLAT), default="grid"))
    ticket = front_end.submit(grid_request(1, 2, 2))
    assert ticket.submission is not None
    front_end.arena.output_rows[ticket.submission.slots, :8] = np.array([7], "<f8").view(np.uint8)
    front_end.complete(Outcome.RESULT)
    front_end.close()
    (answer,) = front_end.answers
    assert isinstance(answer, bytes)
    (z,) = inference_pb2.PredictResponse.FromString(answer).outputs
    assert (list(z.shape), z.data) == ([1], np.array([7], "<f8").tobytes())


def test_the_same_bytes_in_another_shape_are_another_input(front_end: FrontEnd) -> None:
    """What keeps failing is refused; the model may well bear it otherwise."""
    for _ in range(20):
        try:
            front_end.submit(grid_request(1, 2, 4))
        except ModelFailed:
            break
        front_end.complete(Outcome.ERROR)
    else:
        pytest.fail("what keeps failing is never refused")
    front_end.submit(grid_request(1, 4, 2))
    front_end.complete(Outcome.ERROR)


# -- what is told of the model ------------------------------------------------------------------


def test_metadata_names_what_is_dynamic() -> None:
    model = served(GRID)
    theirs = kserve_models.metadata(model)
    assert [list(each.shape) for each in (*theirs.inputs, *theirs.outputs)] == [
        [-1, -1, -1],
        [-1],
        [-1, -1, 2],
        [-1],
    ]
    config = kserve_models.model_config(model, DEFAULT_LIMITS, [])
    assert [list(each.dims) for each in config.input] == [[-1, -1], []]
    assert [list(each.dims) for each in config.output] == [[-1, 2], []]
