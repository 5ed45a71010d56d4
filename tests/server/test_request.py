"""What `check` makes of a request; every refusal over the wire is in tests/e2e/bad_calls_table.py."""

from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidRequest, ModelNotReady, RequestError, UnknownModel
from scheduler.priority import PriorityClass
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.rpc.request import check, parse
from tests.server.world import MAX_ROWS, SIGNATURE, request, served, table, tensor
from tickring.v1 import inference_pb2, types_pb2

Request = inference_pb2.PredictRequest
MODELS = table()
HIGH = PriorityClass.REAL_TIME_TRADING
LOW = PriorityClass.BACKGROUND_TASKS


@pytest.mark.parametrize("names", ["x", "k", "xx", "kxk", ""])
def test_every_input_is_given_exactly_once(names: str) -> None:
    """Neither twice nor not at all, whatever the others are."""
    given = {tensor.name: tensor for tensor in request().inputs}
    with pytest.raises(InvalidRequest, match=r"is given twice|missing"):
        check(Request(model_name="pair", inputs=[given[name] for name in names]), MODELS, None)


def test_scalar_has_a_batch_dimension_too() -> None:
    """[n], not []."""
    message = request()
    del message.inputs[1].shape[:]
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\].shape: k is \[\], allowed is \[n\]$"):
        check(message, MODELS, None)


@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
def test_payloads_say_where_each_tensor_goes(rows: int) -> None:
    """Offset inside a row, bytes of an item, and the bytes as they came."""
    message = request(rows)
    checked = check(message, MODELS, None)
    assert checked.rows == rows
    assert [(payload.offset, payload.item_bytes, payload.data) for payload in checked.payloads] == [
        (0, 24, message.inputs[0].data),
        (64, 8, message.inputs[1].data),
    ]


def test_inputs_come_in_any_order() -> None:
    """A tensor's place follows from its name."""
    message = request(2)
    swapped = Request(model_name="pair", inputs=reversed(message.inputs))
    payloads = check(swapped, MODELS, None).payloads
    assert {payload.offset: payload.data for payload in payloads} == {
        0: message.inputs[0].data,
        64: message.inputs[1].data,
    }


def test_what_is_not_said_has_its_default() -> None:
    """The default model, the model's class, no timeout, all outputs, a shared batch."""
    checked = check(request(), MODELS, None)
    assert checked.model is MODELS.find("")
    assert (checked.priority, checked.timeout_ns, checked.outputs) == (
        PriorityClass.BATCH_PROCESSING,
        None,
        (0, 1, 2),
    )
    assert (checked.request_id, checked.exclusive) == ("", False)


def test_what_is_said_is_kept() -> None:
    """Outputs in the order asked for, id, timeout, options."""
    message = request(
        output_names=["ok", "y"],
        request_id="x" * 128,
        routing_key="y" * 128,
        timeout=Duration(seconds=1, nanos=5),
        options=inference_pb2.PredictOptions(bypass_batching=True),
        model_version="3",
    )
    checked = check(message, MODELS, None)
    assert (checked.outputs, checked.request_id, checked.timeout_ns, checked.exclusive) == (
        (2, 0),
        "x" * 128,
        1_000_000_005,
        True,
    )


@pytest.mark.parametrize(
    ("field", "metadata", "default", "expected"),
    [
        (0, None, HIGH, HIGH),
        (0, None, LOW, LOW),
        (0, "low", HIGH, LOW),
        (0, " 1 ", LOW, HIGH),
        (1, "low", LOW, HIGH),
        (5, "nonsense", HIGH, LOW),
    ],
)
def test_priority_is_the_fields_then_the_metadatas_then_the_models(
    field: int, metadata: str | None, default: PriorityClass, expected: PriorityClass
) -> None:
    """What is closer to the request wins; what loses is not looked at."""
    message = request()
    message.priority = types_pb2.Priority.Name(field)  # type: ignore[assignment]
    models = table(served(default_class=default), default="pair")
    assert check(message, models, metadata).priority is expected


@pytest.mark.parametrize(
    ("seconds", "nanos", "timeout_ns"),
    [(0, 1, 1), (2**62, 0, 2**62 * 10**9), (1, -1, 999_999_999), (-1, 1_000_000_001, 1)],
)
def test_timeout_of_any_length(seconds: int, nanos: int, timeout_ns: int) -> None:
    """Positive is what its sum says."""
    message = request(timeout=Duration(seconds=seconds, nanos=nanos))
    assert check(message, MODELS, None).timeout_ns == timeout_ns


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 0), (0, -1), (1, -(10**9)), (-1, 999_999_999)])
def test_timeout_that_is_none(seconds: int, nanos: int) -> None:
    """Zero and less are refused."""
    with pytest.raises(InvalidRequest, match=r"^timeout: .* s, allowed is more than 0$"):
        check(request(timeout=Duration(seconds=seconds, nanos=nanos)), MODELS, None)


def test_id_is_measured_in_bytes() -> None:
    """64 letters of two bytes are allowed, 65 are not."""
    assert check(request(request_id="é" * 64), MODELS, None).request_id == "é" * 64
    with pytest.raises(InvalidRequest, match="request_id: 130 bytes, allowed are 128"):
        check(request(request_id="é" * 65), MODELS, None)


# -- finite values ------------------------------------------------------------------------------


def one_input(data_type: DataType, *, finite_inputs: bool = True) -> ModelSignature:
    """A model of one input of four elements."""
    return replace(SIGNATURE, inputs=(TensorSpec("x", data_type, (4,)),), finite_inputs=finite_inputs)


def values_request(values: list[float], data_type: DataType) -> Request:
    """To a model of `one_input`."""
    array = np.array([values], data_type.dtype)
    return Request(model_name="pair", inputs=[tensor("x", array, data_type)])


FLOATS = [DataType.FP16, DataType.FP32, DataType.FP64]


@pytest.mark.parametrize("data_type", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 3])
def test_value_that_is_not_finite_is_refused(data_type: DataType, value: float, place: int) -> None:
    """Of every float type, wherever it is, and found by its index."""
    values = [1.0] * 4
    values[place] = value
    with pytest.raises(InvalidRequest) as refused:
        check(values_request(values, data_type), table(served(one_input(data_type)), default="pair"), None)
    assert refused.value.field == "inputs[0].data"
    assert refused.value.description == f"x[0, {place}] is {value}, allowed are finite values; 1 are not"


def test_infinities_that_cancel_out_are_refused() -> None:
    """Their sum is NaN, and so it is looked at each."""
    models = table(served(one_input(DataType.FP32)), default="pair")
    with pytest.raises(InvalidRequest, match=r"x\[0, 0\] is inf, .*; 2 are not"):
        check(values_request([float("inf"), float("-inf"), 0, 0], DataType.FP32), models, None)


@pytest.mark.parametrize("data_type", FLOATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_values_whose_sum_is_not_are_accepted(data_type: DataType, sign: int) -> None:
    """The largest numbers there are, four times."""
    largest = float(np.finfo(data_type.dtype).max) * sign
    models = table(served(one_input(data_type)), default="pair")
    assert check(values_request([largest] * 4, data_type), models, None).rows == 1


def test_model_that_takes_nan_gets_it() -> None:
    """`finite_inputs = false`."""
    models = table(served(one_input(DataType.FP32, finite_inputs=False)), default="pair")
    assert check(values_request([float("nan")] * 4, DataType.FP32), models, None).rows == 1


@pytest.mark.parametrize("data_type", [member for member in DataType if member.dtype.kind in "iu"])
def test_every_bit_pattern_of_an_integer_is_accepted(data_type: DataType) -> None:
    """Also those that would be NaN in a float."""
    models = table(served(one_input(data_type)), default="pair")
    message = values_request([0] * 4, data_type)
    message.inputs[0].data = b"\xff" * len(message.inputs[0].data)
    assert check(message, models, None).rows == 1


# -- refusals that need a state of the server ---------------------------------------------------


def test_model_that_is_loading_is_not_ready() -> None:
    """Known, but not to be served yet; what is wrong with the request besides is not looked at."""
    with pytest.raises(ModelNotReady, match=r"^pair is loading or warming up$"):
        check(Request(), table(ready=False), None)


def test_no_name_without_a_default_model() -> None:
    """The message says which names there are."""
    with pytest.raises(UnknownModel, match=r"is empty and no default model is set; models are pair$"):
        check(Request(), table(served(), default=None), None)


# -- anything -----------------------------------------------------------------------------------


TENSORS = st.builds(
    types_pb2.Tensor,
    name=st.sampled_from(["x", "k", "y", ""]),
    data_type=st.integers(-1, 12),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=4),
    data=st.binary(max_size=64),
)
REQUESTS = st.builds(
    Request,
    model_name=st.sampled_from(["pair", "", "other"]),
    model_version=st.sampled_from(["", "3", "03", "-1"]) | st.text(max_size=5),
    request_id=st.text(max_size=150),
    inputs=st.lists(TENSORS, max_size=3) | st.just(list(request(2).inputs)),
    priority=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5),
    timeout=st.none()
    | st.builds(Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)),
    output_names=st.lists(st.sampled_from(["y", "z", "ok", "no"]), max_size=4),
    routing_key=st.text(max_size=150),
)


@given(message=REQUESTS, metadata=st.none() | st.text(max_size=8))
def test_whatever_comes_is_accepted_or_refused(message: Request, metadata: str | None) -> None:
    """Nothing but an expected error is raised, and what is accepted fills its rows exactly."""
    try:
        checked = check(message, MODELS, metadata)
    except RequestError:
        return
    assert 1 <= checked.rows <= MAX_ROWS
    assert len(set(checked.outputs)) == len(checked.outputs) > 0
    assert sorted(payload.offset for payload in checked.payloads) == [0, 64]
    assert all(len(payload.data) == checked.rows * payload.item_bytes for payload in checked.payloads)


@given(raw=st.binary(max_size=80))
def test_whatever_bytes_come_parse_or_are_refused(raw: bytes) -> None:
    """Anything else would end the call without a word of ours."""
    try:
        parse(raw)
    except InvalidRequest as error:
        refusal = str(error)
    else:
        refusal = f"request: {len(raw)} bytes are not a PredictRequest"
    assert refusal == f"request: {len(raw)} bytes are not a PredictRequest"
