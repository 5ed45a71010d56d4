"""Encodes a ModelInferResponse straight from the output rows, as `server/rpc/response.py` does ours.

Names, types and shapes are constant for a model, a number of rows and a choice of outputs; id, parameters
and raw outputs are the holes. `tests/server/test_kserve_response.py` holds the result against protobuf's
own encoder.
"""

from scheduler.errors import RequestError
from scheduler.partition import Partition, Submission
from scheduler.signature import ModelSignature
from server.rpc.response import Hole, Shapes, fill, varint
from server.status import code_of, to_status
from tickring.kserve.grpc_service_pb2 import InferParameter, ModelInferResponse, ModelStreamInferResponse

QUEUE_WAIT = "tickring_queue_wait_ns"
COMPUTE = "tickring_compute_ns"
SERVER = "tickring_server_ns"
BATCH_SIZE = "tickring_batch_size"
BATCH_BUCKET = "tickring_batch_bucket"
STATUS = "tickring_status"
FINAL = "triton_final_response"

_ID_TAG = b"\x1a"  # ModelInferResponse.id = 3, length-delimited
_PARAMETERS_TAG = b"\x22"  # ModelInferResponse.parameters = 4, length-delimited
_RAW_TAG = b"\x32"  # ModelInferResponse.raw_output_contents = 6, length-delimited
_KEY_TAG = b"\x0a"  # of a map's entry, length-delimited
_VALUE_TAG = b"\x12"  # of a map's entry, length-delimited
_INT64_TAG = b"\x10"  # InferParameter.int64_param = 2, varint
_RESPONSE_TAG = b"\x12"  # ModelStreamInferResponse.infer_response = 2, length-delimited
_LONGEST_VARINT = 10


def _before_integer(name: str) -> list[bytes]:
    """The bytes of an integer parameter before its value, by the length of that."""
    key = _KEY_TAG + varint(len(name)) + name.encode()
    return [
        _PARAMETERS_TAG + varint(len(key) + 3 + length) + key + _VALUE_TAG + varint(1 + length) + _INT64_TAG
        for length in range(_LONGEST_VARINT + 1)
    ]


# In the order of the values that `encode` writes, which is that of their names.
_PARAMETERS = [_before_integer(name) for name in (BATCH_BUCKET, BATCH_SIZE, COMPUTE, QUEUE_WAIT, SERVER)]
# Fields may come in any order and maps entry by entry, so this can follow an encoded response.
_FINAL = ModelInferResponse(parameters={FINAL: InferParameter(bool_param=True)}).SerializeToString()


class InferResponsePlan:
    """The response of one model for a number of rows and a choice of outputs."""

    def __init__(
        self, signature: ModelSignature, rows: int, outputs: tuple[int, ...], shapes: Shapes | None = None
    ) -> None:
        """`shapes`: see `ResponsePlan`."""
        self._head = ModelInferResponse(
            model_name=signature.name, model_version=str(signature.version)
        ).SerializeToString()
        specs = [signature.outputs[index] for index in outputs]
        own_shapes = [signature.outputs[i].shape if shapes is None else shapes[i] for i in outputs]
        before = ModelInferResponse(
            outputs=[
                ModelInferResponse.InferOutputTensor(
                    name=spec.name, datatype=spec.data_type.name, shape=[rows, *shape]
                )
                for spec, shape in zip(specs, own_shapes, strict=True)
            ]
        ).SerializeToString()
        self._holes: list[Hole] = []
        for index, spec, shape in zip(outputs, specs, own_shapes, strict=True):
            item_bytes = spec.bytes_of(shape)
            before += _RAW_TAG + varint(rows * item_bytes)
            self._holes.append(Hole(before, signature.output_offsets[index], item_bytes))
            before = b""

    def encode(
        self, partition: Partition, submission: Submission, request_id: str, arrived_ns: int, now_ns: int
    ) -> bytes:
        """The serialised ModelInferResponse; reads the rows, so before their slots are released."""
        parts = [self._head]
        if request_id:
            encoded = request_id.encode()
            parts += (_ID_TAG, varint(len(encoded)), encoded)
        values = (
            submission.batch_bucket,
            submission.batch_size,
            submission.compute_ns,
            submission.queue_wait_ns,
            now_ns - arrived_ns,
        )
        for before, value in zip(_PARAMETERS, values, strict=True):
            number = varint(value)
            parts.append(before[len(number)])
            parts.append(number)
        fill(parts, self._holes, partition, submission)
        return b"".join(parts)


def stream_response(response: bytes) -> bytes:
    """The serialised ModelStreamInferResponse around a serialised ModelInferResponse."""
    return b"".join((_RESPONSE_TAG, varint(len(response) + len(_FINAL)), response, _FINAL))


def stream_error(request_id: str, error: RequestError) -> bytes:
    """The serialised ModelStreamInferResponse of a request that failed.

    Triton's form has room for a text only; the id, by which clients match, and the name of the status go
    where a response would have them.
    """
    parameters = {
        STATUS: InferParameter(string_param=code_of(error).name),
        FINAL: InferParameter(bool_param=True),
    }
    return ModelStreamInferResponse(
        error_message=to_status(error).message,
        infer_response=ModelInferResponse(id=request_id, parameters=parameters),
    ).SerializeToString()
