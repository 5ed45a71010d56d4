"""Our encoder of responses against protobuf's own: the same bytes."""

import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.arena import Arena, Dimensions
from scheduler.partition import Partition, Submission
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.rpc.response import ResponsePlan, stream_response, varint
from tickring.v1 import inference_pb2, types_pb2

UINT32 = st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 2**64 - 1)
SEQUENCES = st.sampled_from([0, 1, 127, 128, 2**32, 2**32 + 1, 2**64 - 1]) | UINT64
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=130)
SPECS = st.builds(
    TensorSpec,
    name=NAMES,
    data_type=st.sampled_from(DataType),
    shape=st.lists(st.integers(1, 5), max_size=3).map(tuple),
)
SIGNATURES = st.builds(
    ModelSignature,
    name=NAMES,
    version=st.integers(1, 10**9 - 1),
    inputs=st.just((TensorSpec("x", DataType.FP32, ()),)),
    outputs=st.lists(SPECS, min_size=1, max_size=4, unique_by=lambda spec: spec.name).map(tuple),
)


def partition_of(signature: ModelSignature, rows: int, seed: int) -> Partition:
    """A partition whose output rows hold noise."""
    arena = Arena.anonymous(
        Dimensions(
            frontends=1,
            models=1,
            slots_per_frontend=rows,
            input_row_bytes=64,
            output_row_bytes=signature.output_row_bytes,
        )
    )
    arena.output_rows[:] = np.random.default_rng(seed).integers(0, 256, arena.output_rows.shape, np.uint8)
    eventfd = os.eventfd(0)
    try:
        return Partition(arena, 0, eventfd, [eventfd])
    finally:
        os.close(eventfd)


def by_protobuf(
    signature: ModelSignature,
    outputs: tuple[int, ...],
    partition: Partition,
    submission: Submission,
    request_id: str,
    server_ns: int,
) -> inference_pb2.PredictResponse:
    """The response, built field by field."""
    rows = len(submission.slots)
    specs = [(signature.outputs[index], signature.output_offsets[index]) for index in outputs]
    return inference_pb2.PredictResponse(
        request_id=request_id,
        model_name=signature.name,
        model_version=str(signature.version),
        outputs=[
            types_pb2.Tensor(
                name=spec.name,
                data_type=types_pb2.DataType.Name(spec.data_type.proto_value),
                shape=[rows, *spec.shape],
                data=partition.output(submission, offset, spec.item_bytes),
            )
            for spec, offset in specs
        ],
        timing=inference_pb2.Timing(
            queue_wait_ns=submission.queue_wait_ns,
            compute_ns=submission.compute_ns,
            server_ns=server_ns,
            batch_size=submission.batch_size,
            batch_bucket=submission.batch_bucket,
        ),
    )


@given(
    signature=SIGNATURES,
    rows=st.sampled_from([1, 2, 3, 50]),
    request_id=st.text(max_size=128),
    sequence=SEQUENCES,
    timing=st.tuples(UINT64, UINT64, UINT64, UINT32, UINT32),
    choice=st.randoms(),
)
def test_the_bytes_are_those_of_protobuf(
    signature: ModelSignature,
    rows: int,
    request_id: str,
    sequence: int,
    timing: tuple[int, int, int, int, int],
    choice: random.Random,
) -> None:
    """Any model, rows, choice of outputs, id, timing and sequence; alone and as a stream's message."""
    every = range(len(signature.outputs))
    outputs = tuple(choice.sample(every, choice.randint(1, len(every))))
    partition = partition_of(signature, rows, seed=rows)
    submission = partition.reserve(rows, 0, 0, lambda _: None)
    wait_ns, compute_ns, server_ns, size, bucket = timing
    submission.queue_wait_ns, submission.compute_ns = wait_ns, compute_ns
    submission.batch_size, submission.batch_bucket = size, bucket

    ours = ResponsePlan(signature, rows, outputs).encode(partition, submission, request_id, 5, 5 + server_ns)
    theirs = by_protobuf(signature, outputs, partition, submission, request_id, server_ns)
    assert ours == theirs.SerializeToString(deterministic=True)
    whole = inference_pb2.PredictStreamResponse(sequence=sequence, response=theirs)
    assert stream_response(sequence, ours) == whole.SerializeToString(deterministic=True)


def test_rows_come_from_their_own_slots() -> None:
    """Row i of an output is what the engine wrote into the slot of row i, wherever that is."""
    signature = ModelSignature(
        "m",
        1,
        (TensorSpec("x", DataType.FP32, ()),),
        (TensorSpec("a", DataType.INT32, (2,)), TensorSpec("b", DataType.UINT8, ())),
    )
    partition = partition_of(signature, 4, seed=0)
    submission = partition.reserve(3, 0, 0, lambda _: None)
    submission.slots = [2, 0, 3]
    outputs = partition._outputs
    for row, slot in enumerate(submission.slots):
        start = slot * signature.output_row_bytes
        outputs[start : start + 8] = np.array([row, -row], "<i4").tobytes()
        outputs[start + 64] = 100 + row
    raw = ResponsePlan(signature, 3, (1, 0)).encode(partition, submission, "", 0, 1)
    b, a = inference_pb2.PredictResponse.FromString(raw).outputs
    assert (b.name, list(b.shape), list(b.data)) == ("b", [3], [100, 101, 102])
    assert (a.name, list(a.shape)) == ("a", [3, 2])
    assert np.frombuffer(a.data, "<i4").tolist() == [0, 0, 1, -1, 2, -2]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**32, 2**63, 2**64 - 1])
def test_varint_at_its_steps(value: int) -> None:
    """The same bytes as protobuf's for a field of that value."""
    message = inference_pb2.PredictStreamResponse(sequence=value).SerializeToString()
    assert varint(value) == (message[1:] if value else b"\0")
