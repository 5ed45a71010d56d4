"""A good caller in a process of its own, who must be served whatever others do.

    python -m tests.fuzz.witness TARGET

Prints a line once every way of calling has been answered, then calls until a line comes on stdin, and prints
its account as JSON. Ends with its stdin.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from tests.e2e.calls import OWN_CONNECTION, PREDICT, PREDICT_STREAM, array, streamed, window_request, windows
from tests.fuzz.tokens import AUTHORIZATION
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.v1 import inference_pb2

MODEL = "sp500_direction"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# An answer that takes longer is too late. Far beyond what the load of a machine explains.
LATE_S = 15.0
PAUSE_S = 0.005
# Calls over one connection before the next one: that they can connect is part of being served.
CALLS_PER_CONNECTION = 100
PROBLEMS_KEPT = 20
# Batches of other sizes sum in another order.
RTOL, ATOL = 1e-3, 1e-4

Probabilities = npt.NDArray[Any]
Call = Callable[[grpc.aio.Channel, int], Awaitable[Probabilities]]


class Witness:
    """Calls in four ways, each in a loop of its own."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._request = window_request(1, priority="PRIORITY_MARKET_DATA_UPDATE")
        self._infer = kserve.ModelInferRequest(
            model_name=MODEL,
            inputs=[
                kserve.ModelInferRequest.InferInputTensor(name="window", datatype="FP32", shape=[1, 50, 60])
            ],
            raw_input_contents=[windows(1).tobytes()],
            outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name="classification_probs")],
            parameters={"priority": kserve.InferParameter(int64_param=2)},
        )
        self._request.output_names.append("classification_probs")
        self._expected: Probabilities | None = None
        self._stopping = False
        self.answers: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.problems: list[str] = []

    async def run(self, stop: Awaitable[object]) -> None:
        """Says when it has begun; returns after `stop`."""
        ways: dict[str, Call] = {
            "Predict": self._predict,
            "PredictStream": self._predict_stream,
            "ModelInfer": self._model_infer,
            "ModelStreamInfer": self._model_stream_infer,
        }
        async with self._channel() as channel:
            for number, way in enumerate(ways.values()):
                answer = await way(channel, number)
                self._expected = answer if self._expected is None else self._expected
        print("calling", flush=True)
        loops = [asyncio.create_task(self._loop(name, way)) for name, way in ways.items()]
        await stop
        self._stopping = True
        await asyncio.gather(*loops)

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._target, options=(*OWN_CONNECTION, ("grpc.enable_retries", 0)))

    async def _loop(self, name: str, way: Call) -> None:
        number = 0
        while not self._stopping:
            async with self._channel() as channel:
                for _ in range(CALLS_PER_CONNECTION):
                    number += 1
                    await self._once(name, way, channel, number)
                    if self._stopping:
                        break
                    await asyncio.sleep(PAUSE_S)

    async def _once(self, name: str, way: Call, channel: grpc.aio.Channel, number: int) -> None:
        started_s = time.monotonic()
        try:
            answer = await way(channel, number)
            assert self._expected is not None
            np.testing.assert_allclose(answer, self._expected, rtol=RTOL, atol=ATOL)
        except (grpc.aio.AioRpcError, AssertionError) as error:
            text = (
                f"{error.code().name}: {error.details()}"
                if isinstance(error, grpc.aio.AioRpcError)
                else error
            )
            if len(self.problems) < PROBLEMS_KEPT:
                self.problems.append(f"witness, {name} {number}: {text}")
        else:
            self.answers[name] += 1
        self.seconds.append(time.monotonic() - started_s)

    async def _predict(self, channel: grpc.aio.Channel, _number: int) -> Probabilities:
        raw = await _unary(channel, PREDICT, self._request.SerializeToString())
        return _probabilities(inference_pb2.PredictResponse.FromString(raw))

    async def _predict_stream(self, channel: grpc.aio.Channel, number: int) -> Probabilities:
        raw = await _one_of_a_stream(channel, PREDICT_STREAM, streamed(number, self._request))
        answer = inference_pb2.PredictStreamResponse.FromString(raw)
        assert answer.sequence == number, answer
        assert answer.HasField("response"), answer
        return _probabilities(answer.response)

    async def _model_infer(self, channel: grpc.aio.Channel, number: int) -> Probabilities:
        self._infer.id = str(number)
        raw = await _unary(channel, INFER, self._infer.SerializeToString())
        return _raw_probabilities(kserve.ModelInferResponse.FromString(raw), str(number))

    async def _model_stream_infer(self, channel: grpc.aio.Channel, number: int) -> Probabilities:
        self._infer.id = str(number)
        raw = await _one_of_a_stream(channel, INFER_STREAM, self._infer.SerializeToString())
        answer = kserve.ModelStreamInferResponse.FromString(raw)
        assert not answer.error_message, answer.error_message
        return _raw_probabilities(answer.infer_response, str(number))


async def _unary(channel: grpc.aio.Channel, method: str, message: bytes) -> bytes:
    rpc: Any = channel.unary_unary(method, None, None)
    return bytes(await rpc(message, timeout=LATE_S, metadata=(AUTHORIZATION,)))


async def _one_of_a_stream(channel: grpc.aio.Channel, method: str, message: bytes) -> bytes:
    """The answer to the one message of an RPC stream, which must then end with OK."""
    rpc: Any = channel.stream_stream(method, None, None)
    call = rpc(timeout=LATE_S, metadata=(AUTHORIZATION,))
    await call.write(message)
    await call.done_writing()
    answers = [raw async for raw in call]
    assert len(answers) == 1, f"{len(answers)} answers to one message"
    return bytes(answers[0])


def _probabilities(response: inference_pb2.PredictResponse) -> Probabilities:
    (output,) = response.outputs
    return array(output)


def _raw_probabilities(response: kserve.ModelInferResponse, request_id: str) -> Probabilities:
    assert response.id == request_id, response.id
    (raw,) = response.raw_output_contents
    return np.frombuffer(raw, "<f4").reshape(1, 3)


async def main(target: str) -> None:
    """Runs until told to stop."""
    witness = Witness(target)
    await witness.run(asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))
    slowest = sorted(witness.seconds)
    account = {
        "answers": witness.answers,
        "problems": witness.problems,
        "median_s": slowest[len(slowest) // 2],
        "p99_s": slowest[len(slowest) * 99 // 100],
        "slowest_s": slowest[-1],
    }
    print(json.dumps(account), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
