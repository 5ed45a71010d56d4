"""PredictRequests as bytes: made once, sent often, and never taken apart on the way.

A message that is written behind another one of its kind adds to it: that is how protobuf's encoding reads.
So a request with a timeout is the request's bytes and those of a timeout.
"""

from tickring.v1 import inference_pb2, types_pb2

# Keys of the wire: (field number << 3) | type.
_SEQUENCE = b"\x08"
_REQUEST = b"\x12"


def with_timeout(request: bytes, timeout_s: float) -> bytes:
    """The same request, which had none; the wire wants a positive one."""
    message = inference_pb2.PredictRequest()
    message.timeout.FromNanoseconds(max(1, int(timeout_s * 1e9)))
    return request + message.SerializeToString()


def with_priority(request: bytes, priority: types_pb2.Priority) -> bytes:
    """The same request, which had none."""
    return request + inference_pb2.PredictRequest(priority=priority).SerializeToString()


def stream_message(sequence: int, request: bytes) -> bytes:
    """A PredictStreamRequest."""
    return b"".join((_SEQUENCE, _varint(sequence), _REQUEST, _varint(len(request)), request))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
