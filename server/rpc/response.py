"""Encodes a PredictResponse straight from the output rows.

Serialised protobuf messages can be concatenated field by field, so the response of a model, a number of
rows and a choice of outputs is a constant with holes for the data. Filling the holes costs a fraction
of building five Tensor messages, and it happens for every answer.
`tests/server/test_response.py` holds the result against protobuf's own encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from tickring.v1 import inference_pb2, types_pb2

# Of one item, one per output.
Shapes = Sequence[tuple[int, ...]]

_OUTPUTS_TAG = b"\x22"  # PredictResponse.outputs = 4, length-delimited
_TIMING_TAG = b"\x2a"  # PredictResponse.timing = 5, length-delimited
_DATA_TAG = b"\x22"  # Tensor.data = 4, length-delimited
_REQUEST_ID_TAG = b"\x0a"  # PredictResponse.request_id = 1, length-delimited
_SEQUENCE_TAG = b"\x08"  # PredictStreamResponse.sequence = 1, varint
_RESPONSE_TAG = b"\x12"  # PredictStreamResponse.response = 2, length-delimited


def varint(value: int) -> bytes:
    """Protobuf's base-128 encoding of a non-negative integer."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Hole:
    """Constant bytes, then the data of one output: `rows * item_bytes` bytes from `offset` of the rows."""

    before: bytes
    offset: int
    item_bytes: int


def fill(parts: list[bytes], holes: list[Hole], partition: Partition, submission: Submission) -> None:
    """Appends what is before each hole, and what belongs into it."""
    for hole in holes:
        parts.append(hole.before)
        parts.append(partition.output(submission, hole.offset, hole.item_bytes))


class ResponsePlan:
    """The response of one model for a number of rows and a choice of outputs."""

    def __init__(
        self, signature: ModelSignature, rows: int, outputs: tuple[int, ...], shapes: Shapes | None = None
    ) -> None:
        """`shapes`: per item, of all outputs of the model; None where they are fixed."""
        head = inference_pb2.PredictResponse(
            model_name=signature.name, model_version=str(signature.version)
        ).SerializeToString()
        self._holes: list[Hole] = []
        for index in outputs:
            spec = signature.outputs[index]
            shape = spec.shape if shapes is None else shapes[index]
            item_bytes = spec.bytes_of(shape)
            size = rows * item_bytes
            tensor = types_pb2.Tensor(
                name=spec.name,
                data_type=f"DATA_TYPE_{spec.data_type.name}",
                shape=[rows, *shape],
            ).SerializeToString()
            tensor += _DATA_TAG + varint(size)
            before = head + _OUTPUTS_TAG + varint(len(tensor) + size) + tensor
            self._holes.append(Hole(before, signature.output_offsets[index], item_bytes))
            head = b""

    def encode(
        self, partition: Partition, submission: Submission, request_id: str, arrived_ns: int, now_ns: int
    ) -> bytes:
        """The serialised PredictResponse; reads the rows, so before their slots are released."""
        parts: list[bytes] = []
        if request_id:
            encoded = request_id.encode()
            parts += (_REQUEST_ID_TAG, varint(len(encoded)), encoded)
        fill(parts, self._holes, partition, submission)
        timing = inference_pb2.Timing(
            queue_wait_ns=submission.queue_wait_ns,
            compute_ns=submission.compute_ns,
            server_ns=now_ns - arrived_ns,
            batch_size=submission.batch_size,
            batch_bucket=submission.batch_bucket,
        ).SerializeToString()
        parts += (_TIMING_TAG, varint(len(timing)), timing)
        return b"".join(parts)


def stream_response(sequence: int, response: bytes) -> bytes:
    """The serialised PredictStreamResponse around a serialised PredictResponse."""
    head = _SEQUENCE_TAG + varint(sequence) if sequence else b""
    return b"".join((head, _RESPONSE_TAG, varint(len(response)), response))
