"""What `check` makes of a ModelInferRequest: the same as of a PredictRequest that says the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scheduler.errors import InvalidRequest, UnknownModel
from scheduler.priority import PriorityClass
from scheduler.signature import DataType, TensorSpec
from server.rpc.kserve_request import check, parse
from server.rpc.request import CheckedRequest
from server.rpc.request import check as check_ours
from tests.server.kserve_world import Contents, Input, Output, Parameter, raw_request, typed_request
from tests.server.world import MAX_ROWS, SIGNATURE, request, served, table
from tickring.kserve.grpc_service_pb2 import ModelInferRequest

MODELS = table()
HIGH = PriorityClass.REAL_TIME_TRADING
LOW = PriorityClass.BACKGROUND_TASKS


def payloads(checked: CheckedRequest) -> dict[int, bytes]:
    """By place in the row."""
    return {payload.offset: payload.data for payload in checked.payloads}


@pytest.mark.parametrize("make", [raw_request, typed_request])
@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS])
def test_says_the_same_as_our_own_request(make: Callable[[int], ModelInferRequest], rows: int) -> None:
    """The rows land in the same places, whichever form they came in."""
    ours = check_ours(request(rows), MODELS, None)
    theirs = check(make(rows), MODELS, None)
    assert theirs == replace(ours, payloads=theirs.payloads)
    assert payloads(theirs) == payloads(ours)


def test_inputs_come_in_any_order() -> None:
    """raw_input_contents follow the inputs of the request, not those of the model."""
    good = raw_request(2)
    swapped = ModelInferRequest(
        model_name="pair",
        inputs=reversed(good.inputs),
        raw_input_contents=list(reversed(good.raw_input_contents)),
    )
    assert payloads(check(swapped, MODELS, None)) == payloads(check(good, MODELS, None))


def test_what_is_said_is_kept() -> None:
    """Outputs in the order asked for, id, timeout; parameters that mean nothing here change nothing."""
    message = raw_request(
        id="x" * 128,
        model_version="3",
        outputs=[Output(name="ok", parameters={"binary_data": Parameter(bool_param=True)}), Output(name="y")],
        parameters={
            "timeout": Parameter(int64_param=1500),
            "sequence_id": Parameter(int64_param=7),
            "triton_enable_empty_final_response": Parameter(bool_param=True),
        },
    )
    checked = check(message, MODELS, None)
    assert (checked.outputs, checked.request_id, checked.timeout_ns) == ((2, 0), "x" * 128, 1_500_000)
    assert (checked.priority, checked.exclusive) == (PriorityClass.BATCH_PROCESSING, False)


# -- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "metadata", "expected"),
    [
        (None, None, HIGH),
        (None, "low", LOW),
        (Parameter(uint64_param=0), None, HIGH),
        (Parameter(int64_param=0), "low", LOW),
        (Parameter(string_param=""), "low", LOW),
        (Parameter(uint64_param=5), None, LOW),
        (Parameter(int64_param=5), "high", LOW),
        (Parameter(string_param="5"), None, LOW),
        (Parameter(string_param="background_tasks"), None, LOW),
        (Parameter(string_param=" Low "), None, LOW),
    ],
)
def test_priority_in_every_form(
    parameter: Parameter | None, metadata: str | None, expected: PriorityClass
) -> None:
    """1 to 5; 0 is the metadata's, then the model's."""
    models = table(served(default_class=HIGH), default="pair")
    parameters = {} if parameter is None else {"priority": parameter}
    assert check(raw_request(parameters=parameters), models, metadata).priority is expected


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(uint64_param=6),
        Parameter(int64_param=-1),
        Parameter(string_param="urgent"),
        Parameter(bool_param=True),
        Parameter(double_param=1.0),
        Parameter(),
    ],
    ids=str,
)
def test_priority_that_is_none(parameter: Parameter) -> None:
    """Neither a class nor the default."""
    with pytest.raises(InvalidRequest) as refused:
        check(raw_request(parameters={"priority": parameter}), MODELS, None)
    assert refused.value.field == "parameters.priority"


@pytest.mark.parametrize(
    ("parameter", "timeout_ns"),
    [
        (Parameter(int64_param=1), 1000),
        (Parameter(uint64_param=2**64 - 1), (2**64 - 1) * 1000),
        (Parameter(string_param="250"), 250_000),
        (Parameter(int64_param=0), None),
    ],
)
def test_timeout_is_microseconds(parameter: Parameter, timeout_ns: int | None) -> None:
    """0 is none."""
    assert check(raw_request(parameters={"timeout": parameter}), MODELS, None).timeout_ns == timeout_ns


@pytest.mark.parametrize(
    "parameter", [Parameter(int64_param=-1), Parameter(string_param="1s"), Parameter(double_param=1.0)]
)
def test_timeout_that_is_none(parameter: Parameter) -> None:
    """Less than 0, or no integer."""
    with pytest.raises(InvalidRequest) as refused:
        check(raw_request(parameters={"timeout": parameter}), MODELS, None)
    assert refused.value.field == "parameters.timeout"


# -- typed contents -----------------------------------------------------------------------------

TYPED: list[tuple[DataType, str, list[Any]]] = [
    (DataType.BOOL, "bool_contents", [True, False, True, True]),
    (DataType.UINT8, "uint_contents", [0, 255, 1, 2]),
    (DataType.INT8, "int_contents", [-128, 127, 0, 1]),
    (DataType.INT16, "int_contents", [-(2**15), 2**15 - 1, 0, 1]),
    (DataType.INT32, "int_contents", [-(2**31), 2**31 - 1, 0, 1]),
    (DataType.INT64, "int64_contents", [-(2**63), 2**63 - 1, 0, 1]),
    (DataType.FP32, "fp32_contents", [0.5, -1.0, 3e38, 0.0]),
    (DataType.FP64, "fp64_contents", [0.5, -1.0, 1e300, 0.0]),
]


def typed(data_type: DataType, field: str, values: list[Any]) -> ModelInferRequest:
    """To a model of one input of four elements."""
    contents = Contents(**{field: values})
    tensor = Input(name="x", datatype=data_type.name, shape=[1, 4], contents=contents)
    return ModelInferRequest(model_name="pair", inputs=[tensor])


def one_input(data_type: DataType) -> Any:
    """A table of that model."""
    signature = replace(SIGNATURE, inputs=(TensorSpec("x", data_type, (4,)),))
    return table(served(signature), default="pair")


@pytest.mark.parametrize(("data_type", "field", "values"), TYPED)
def test_typed_contents_become_raw_bytes(data_type: DataType, field: str, values: list[Any]) -> None:
    """Of every type that has a field."""
    checked = check(typed(data_type, field, values), one_input(data_type), None)
    assert checked.payloads[0].data == np.array(values, data_type.dtype).tobytes()


@pytest.mark.parametrize(
    ("data_type", "field", "value"),
    [
        (DataType.INT8, "int_contents", 128),
        (DataType.INT16, "int_contents", -(2**15) - 1),
        (DataType.UINT8, "uint_contents", 256),
    ],
)
def test_value_that_does_not_fit_its_type(data_type: DataType, field: str, value: int) -> None:
    """The field of the contents is wider than the type."""
    with pytest.raises(InvalidRequest, match=rf"{field} has a value that is no {data_type.name}"):
        check(typed(data_type, field, [0, value, 0, 0]), one_input(data_type), None)


def test_half_precision_comes_raw_only() -> None:
    """It has no field."""
    with pytest.raises(InvalidRequest, match="FP16 has no typed form, send raw_input_contents"):
        check(typed(DataType.FP16, "fp32_contents", [0.0] * 4), one_input(DataType.FP16), None)


def test_not_finite_is_refused_by_its_place() -> None:
    """In either form."""
    message = typed(DataType.FP32, "fp32_contents", [0.0, 0.0, float("nan"), 0.0])
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\].contents: x\[0, 2\] is nan"):
        check(message, one_input(DataType.FP32), None)


# -- refusals -----------------------------------------------------------------------------------


def spoiled(spoil: Callable[[ModelInferRequest], object]) -> ModelInferRequest:
    """A good raw request after that."""
    message = raw_request()
    spoil(message)
    return message


def set_datatype(message: ModelInferRequest, datatype: str) -> None:
    message.inputs[0].datatype = datatype


REGION = {"shared_memory_region": Parameter(string_param="r")}
REFUSED: list[tuple[str, Callable[[ModelInferRequest], object], str, str]] = [
    ("bytes", lambda m: set_datatype(m, "BYTES"), "inputs[0].datatype", "x is BYTES, allowed is FP32"),
    ("bf16", lambda m: set_datatype(m, "BF16"), "inputs[0].datatype", "x is BF16, allowed is FP32"),
    ("no type", lambda m: set_datatype(m, ""), "inputs[0].datatype", "x is '', allowed is FP32"),
    (
        "type with a newline",
        lambda m: set_datatype(m, "FP32\n" + "x" * 99),
        "inputs[0].datatype",
        "x is 'FP32\\n" + "x" * 59 + "'…, allowed is FP32",
    ),
    (
        "raw too short",
        lambda m: m.raw_input_contents.pop(),
        "raw_input_contents",
        "1 for 2 inputs, needed is one for each",
    ),
    (
        "both forms",
        lambda m: m.inputs[1].contents.int64_contents.append(1),
        "inputs[1].contents",
        "set beside raw_input_contents, allowed is one of them",
    ),
    (
        "too few bytes",
        lambda m: m.raw_input_contents.__setitem__(1, b"1234"),
        "raw_input_contents[1]",
        "k has 4 bytes, INT64 [1] needs 8",
    ),
    (
        "unknown output",
        lambda m: m.outputs.append(Output(name="none")),
        "outputs[0].name",
        "unknown output 'none', allowed is y, z, ok",
    ),
    (
        "classification",
        lambda m: m.outputs.append(Output(name="y", parameters={"classification": Parameter(int64_param=3)})),
        "outputs[0].parameters.classification",
        "not supported, tensors go as raw bytes only",
    ),
    (
        "output in shared memory",
        lambda m: m.outputs.append(Output(name="y", parameters=REGION)),
        "outputs[0].parameters.shared_memory_region",
        "not supported, tensors go as raw bytes only",
    ),
    ("long id", lambda m: setattr(m, "id", "x" * 129), "id", "129 bytes, allowed are 128"),
    ("nothing", lambda m: m.Clear(), "inputs", "missing x, k, needed are x, k"),
]


@pytest.mark.parametrize(
    ("spoil", "field", "description"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused_with_the_field_by_its_kserve_name(
    spoil: Callable[[ModelInferRequest], object], field: str, description: str
) -> None:
    """What the caller has to look at is called as in its own request."""
    with pytest.raises(InvalidRequest) as refused:
        check(spoiled(spoil), MODELS, None)
    assert (refused.value.field, refused.value.description) == (field, description)


@pytest.mark.parametrize("others", [0, 1])
def test_input_in_shared_memory_is_refused_as_that(others: int) -> None:
    """It has no contents, alone or beside others that have."""
    message = raw_request()
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    del message.raw_input_contents[others:]
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\].parameters.shared_memory_region: not supported"):
        check(message, MODELS, None)


def test_unknown_model() -> None:
    """As `ModelTable.route` says."""
    with pytest.raises(UnknownModel):
        check(raw_request(model_name="none"), MODELS, None)


def test_bytes_that_are_none() -> None:
    """Not a bug of ours."""
    with pytest.raises(InvalidRequest, match=r"^request: 3 bytes are not a ModelInferRequest$"):
        parse(b"\xff\xff\xff")
