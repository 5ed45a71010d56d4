"""Our encoder of ModelInferResponse against protobuf's own: the same bytes."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import Overloaded
from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from server.rpc import kserve_response
from server.rpc.kserve_response import InferResponsePlan
from tests.server.test_response import SIGNATURES, UINT32, partition_of
from tickring.kserve import grpc_service_pb2 as kserve

INT63 = st.integers(0, 2**63 - 1)


def by_protobuf(
    signature: ModelSignature,
    outputs: tuple[int, ...],
    partition: Partition,
    submission: Submission,
    request_id: str,
    server_ns: int,
) -> kserve.ModelInferResponse:
    """The response, built field by field."""
    rows = len(submission.slots)
    specs = [(signature.outputs[index], signature.output_offsets[index]) for index in outputs]
    parameters = {
        "tickring_queue_wait_ns": submission.queue_wait_ns,
        "tickring_compute_ns": submission.compute_ns,
        "tickring_server_ns": server_ns,
        "tickring_batch_size": submission.batch_size,
        "tickring_batch_bucket": submission.batch_bucket,
    }
    return kserve.ModelInferResponse(
        model_name=signature.name,
        model_version=str(signature.version),
        id=request_id,
        parameters={name: kserve.InferParameter(int64_param=value) for name, value in parameters.items()},
        outputs=[
            kserve.ModelInferResponse.InferOutputTensor(
                name=spec.name, datatype=spec.data_type.name, shape=[rows, *spec.shape]
            )
            for spec, _ in specs
        ],
        raw_output_contents=[partition.output(submission, offset, spec.item_bytes) for spec, offset in specs],
    )


@given(
    signature=SIGNATURES,
    rows=st.sampled_from([1, 2, 3, 50]),
    request_id=st.text(max_size=128),
    timing=st.tuples(INT63, INT63, INT63, UINT32, UINT32),
    choice=st.randoms(),
)
def test_the_bytes_are_those_of_protobuf(
    signature: ModelSignature,
    rows: int,
    request_id: str,
    timing: tuple[int, int, int, int, int],
    choice: random.Random,
) -> None:
    """Any model, rows, choice of outputs, id and timing; and as a stream's message it says the same."""
    every = range(len(signature.outputs))
    outputs = tuple(choice.sample(every, choice.randint(1, len(every))))
    partition = partition_of(signature, rows, seed=rows)
    submission = partition.reserve(rows, 0, 0, lambda _: None)
    submission.queue_wait_ns, submission.compute_ns, server_ns, size, bucket = timing
    submission.batch_size, submission.batch_bucket = size, bucket

    ours = InferResponsePlan(signature, rows, outputs).encode(
        partition, submission, request_id, 5, 5 + server_ns
    )
    theirs = by_protobuf(signature, outputs, partition, submission, request_id, server_ns)
    assert ours == theirs.SerializeToString(deterministic=True)

    theirs.parameters["triton_final_response"].bool_param = True
    streamed = kserve.ModelStreamInferResponse.FromString(kserve_response.stream_response(ours))
    assert streamed == kserve.ModelStreamInferResponse(infer_response=theirs)


def test_error_of_a_stream_says_whose_and_which() -> None:
    """The text is where Triton's clients look; id and status are beside it."""
    raw = kserve_response.stream_error("a", Overloaded("slots", "no room", 1.0))
    message = kserve.ModelStreamInferResponse.FromString(raw)
    assert message.error_message == "no room"
    assert message.infer_response.id == "a"
    parameters = message.infer_response.parameters
    assert parameters["tickring_status"].string_param == "RESOURCE_EXHAUSTED"
    assert parameters["triton_final_response"].bool_param is True
