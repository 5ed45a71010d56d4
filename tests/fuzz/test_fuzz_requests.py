"""Whatever comes as a request is checked, or refused with a RequestError that can be told."""

import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import RequestError
from server.rpc.dialect import Dialect
from server.rpc.inference import PredictDialect
from server.rpc.kserve import InferDialect
from server.status import MAX_TEXT, to_status
from tests.fuzz.corpus import rpcs
from tests.fuzz.mutations import CUT_BYTES, mutate
from tests.fuzz.wire import encode, parse
from tests.server.kserve_world import raw_request, typed_request
from tests.server.world import MAX_ROWS, SIGNATURE, request, table
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2

MODELS = table()
CASES = 1000
# A client drops trailers of more than this, and the status with them.
MAX_TRAILERS = 8192

PREDICT = [
    request().SerializeToString(),
    request(
        3, request_id="ü", priority="PRIORITY_BACKGROUND_TASKS", output_names=["z", "y"]
    ).SerializeToString(),
]
INFER = [
    raw_request(2).SerializeToString(),
    typed_request(2).SerializeToString(),
    raw_request(parameters={"priority": kserve.InferParameter(string_param="high")}).SerializeToString(),
    raw_request(parameters={"timeout": kserve.InferParameter(int64_param=5)}).SerializeToString(),
]
# The dialect, what it reads, good ones.
DIALECTS: dict[str, tuple[Dialect[Any, Any], Any, list[bytes]]] = {
    "predict": (PredictDialect(), inference_pb2.PredictRequest.DESCRIPTOR, PREDICT),
    "infer": (InferDialect(), kserve.ModelInferRequest.DESCRIPTOR, INFER),
}
priorities = st.none() | st.text(max_size=30) | st.sampled_from(["high", "5", "0"])


def _check_told(error: RequestError) -> None:
    # Text, details and the text in the details.
    assert len(to_status(error).message) <= MAX_TEXT + 1
    assert len(to_status(error).SerializeToString()) < MAX_TRAILERS


def handle(dialect: Dialect[Any, Any], raw: bytes, priority: str | None, *, streamed: bool = False) -> None:
    """As the calls of a service do."""
    try:
        mark, message = dialect.unwrap(raw) if streamed else (None, dialect.parse(raw))
        if isinstance(message, RequestError):
            raise message
        checked = dialect.check(message, MODELS, priority)
    except RequestError as error:
        _check_told(error)
        if streamed:
            dialect.stream_error(mark, error)
        return
    assert 1 <= checked.rows <= MAX_ROWS
    assert {payload.offset for payload in checked.payloads} == {
        offset for _, offset in SIGNATURE.input_by_name.values()
    }
    assert all(len(payload.data) == checked.rows * payload.item_bytes for payload in checked.payloads)
    assert checked.outputs
    assert set(checked.outputs) <= set(SIGNATURE.all_outputs)


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=CASES, deadline=None)
@given(raw=st.binary(max_size=200), priority=priorities, streamed=st.booleans())
def test_any_bytes(name: str, raw: bytes, priority: str | None, streamed: bool) -> None:
    """Are a request or an InvalidRequest."""
    handle(DIALECTS[name][0], raw, priority, streamed=streamed)


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=CASES, deadline=None)
@given(seed=st.integers(0, 1 << 32), priority=priorities)
def test_mutated_requests(name: str, seed: int, priority: str | None) -> None:
    """Good requests with fields changed, moved, repeated and lied about."""
    dialect, kind, good = DIALECTS[name]
    rng = random.Random(seed)
    raw = mutate(rng, parse(rng.choice(good), kind), rng.choice(PREDICT + INFER))
    handle(dialect, raw, priority)
    if name == "predict":
        raw = inference_pb2.PredictStreamRequest(sequence=seed).SerializeToString() + b"\x12" + raw
    handle(dialect, raw, priority, streamed=True)


int64s = st.integers(-(1 << 63), (1 << 63) - 1)
shapes = st.lists(int64s | st.sampled_from([1, 2, 3, MAX_ROWS]), max_size=4) | st.sampled_from(
    [[1, 2, 3], [1]]
)
texts = st.text(max_size=200)
names = st.sampled_from(["x", "k"]) | texts


@settings(max_examples=CASES, deadline=None)
@given(
    shape=shapes,
    data=st.binary(max_size=64) | st.just(bytes(24)),
    type_number=st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 12),
    name=names,
    seconds=int64s,
    priority=st.integers(-(1 << 31), (1 << 31) - 1),
    text=texts,
)
def test_requests_of_any_values(
    shape: list[int], data: bytes, type_number: int, name: str, seconds: int, priority: int, text: str
) -> None:
    """As far as the fields can carry them."""
    message = request(request_id=text)
    tensor = message.inputs[0]
    tensor.name, tensor.data, tensor.data_type = name, data, type_number  # type: ignore[assignment]
    tensor.shape[:] = shape
    message.timeout.seconds = seconds
    message.priority = priority  # type: ignore[assignment]
    handle(DIALECTS["predict"][0], message.SerializeToString(), None)


def _parameter(kind: str, value: Any) -> kserve.InferParameter:
    return kserve.InferParameter(**{kind: value})


parameters = st.one_of(
    st.builds(_parameter, st.just("string_param"), texts | st.sampled_from(["1", "٣", "²", "9" * 70, "-1"])),
    st.builds(_parameter, st.just("int64_param"), int64s),
    st.builds(_parameter, st.just("uint64_param"), st.integers(0, (1 << 64) - 1)),
    st.builds(_parameter, st.just("double_param"), st.floats()),
    st.builds(_parameter, st.just("bool_param"), st.booleans()),
    st.just(kserve.InferParameter()),
)


@settings(max_examples=CASES, deadline=None)
@given(
    shape=shapes,
    datatype=st.sampled_from(["FP32", "FP16", "INT64", "INT8", "UINT8", "BOOL", "BYTES", "", "fp32"]) | texts,
    wide=st.lists(int64s, max_size=8),
    narrow=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=8),
    floats=st.lists(st.floats(width=32), max_size=8),
    given_parameters=st.dictionaries(
        st.sampled_from(["priority", "timeout", "classification", "shared_memory_region"]) | texts,
        parameters,
        max_size=3,
    ),
)
def test_typed_contents_and_parameters_of_any_values(
    shape: list[int],
    datatype: str,
    wide: list[int],
    narrow: list[int],
    floats: list[float],
    given_parameters: dict[str, kserve.InferParameter],
) -> None:
    """Numbers that are none of their type are refused, never wrapped round."""
    message = typed_request()
    tensor = message.inputs[0]
    tensor.datatype = datatype
    tensor.shape[:] = shape
    tensor.contents.Clear()
    tensor.contents.int64_contents.extend(wide)
    tensor.contents.int_contents.extend(narrow)
    tensor.contents.uint_contents.extend(abs(number) for number in narrow)
    tensor.contents.fp32_contents.extend(floats)
    for name, value in given_parameters.items():
        message.parameters[name].CopyFrom(value)
        tensor.parameters[name].CopyFrom(value)
    handle(DIALECTS["infer"][0], message.SerializeToString(), None)


def test_corpus_is_read_and_written_back() -> None:
    """Every seed, byte by byte: else the mutations would be of something else."""
    for rpc in rpcs():
        for seed in rpc.seeds:
            assert encode(parse(encode(seed), rpc.request)) == encode(seed)


def test_mutations_are_repeatable_bounded_and_mostly_no_good() -> None:
    """And still some are good: a fuzzer of which all is refused at once looks at little."""
    dialect, kind, good = DIALECTS["predict"]
    tree = parse(good[0], kind)
    drawn = [mutate(random.Random(seed), tree, good[1]) for seed in range(200)]
    assert drawn == [mutate(random.Random(seed), tree, good[1]) for seed in range(200)]
    assert encode(tree) == good[0]
    assert max(map(len, drawn)) <= CUT_BYTES
    parsed = checked = 0
    for raw in drawn:
        with suppress(RequestError):
            message = dialect.parse(raw)
            parsed += 1
            dialect.check(message, MODELS, None)
            checked += 1
    assert len(drawn) // 10 < checked < parsed < len(drawn) * 9 // 10
