"""KServe v2 requests that every server is sent, byte for byte, and whether an answer is the model's."""

from collections.abc import Sequence

import grpc
import numpy as np

from bench.peers.bare import Rows, windows
from bench.peers.catalog import INPUT, MODEL, OUTPUTS
from tickring.kserve.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 10.0
FIRST_TIMEOUT_S = 2.0
# Batches of other sizes add up in another order.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def requests() -> list[bytes]:
    """One for each row of `windows`; no parameters, for servers differ in which they know."""
    return [
        ModelInferRequest(
            model_name=MODEL,
            inputs=[
                ModelInferRequest.InferInputTensor(name=INPUT, datatype="FP32", shape=(1, *window.shape))
            ],
            raw_input_contents=[window.tobytes()],
        ).SerializeToString()
        for window in windows()
    ]


class Checker:
    """Asks a server what the bare model has answered."""

    def __init__(self, port: int, asked: Sequence[bytes], right: Sequence[Rows]) -> None:
        self._target = f"127.0.0.1:{port}"
        self._asked = asked
        self._right = dict(zip(OUTPUTS, right, strict=True))

    def answers(self) -> bool:
        """Whether it answers at all. Raises RuntimeError where it does so wrongly."""
        # A channel that was refused waits before it tries again: a new one for each try.
        with grpc.insecure_channel(self._target) as channel:
            try:
                raw = channel.unary_unary(METHOD, None, None)(self._asked[0], timeout=FIRST_TIMEOUT_S)
            except grpc.RpcError:
                return False
        self._check(0, raw)
        return True

    def check_all(self) -> None:
        """Every row, first alone, then all at once, so that batches are right too. Raises RuntimeError."""
        with grpc.insecure_channel(self._target) as channel:
            call = channel.unary_unary(METHOD, None, None)
            for number, request in enumerate(self._asked):
                self._check(number, call(request, timeout=TIMEOUT_S))
            futures = [call.future(request, timeout=TIMEOUT_S) for request in self._asked]
            for number, future in enumerate(futures):
                self._check(number, future.result())

    def _check(self, number: int, raw: bytes) -> None:
        answer = ModelInferResponse.FromString(raw)
        names = [output.name for output in answer.outputs]
        if set(names) != set(self._right):
            raise RuntimeError(f"{self._target} gives {names}, needed are {list(self._right)}")
        for name, data in zip(names, answer.raw_output_contents, strict=True):
            right = self._right[name][number]
            if not np.allclose(np.frombuffer(data, np.float32), right, RELATIVE, ABSOLUTE):
                raise RuntimeError(f"{self._target} is wrong about {name} of row {number}")
