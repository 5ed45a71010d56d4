"""The same load through KServe's ModelInfer and through our own Predict: what the other form costs.

    python -m bench.kserve [--rounds 8] [--calls 6000] [--in-flight 64] [--mode unary|stream]

Both requests are encoded once and no answer is decoded, so that the generator does the same for both and what
differs is the server. Rounds alternate, each in a fresh process and in turn first, so that a change of the
machine's speed meets both. The figure is the median of the ratios of neighbouring rounds; exit code 1 when
ModelInfer carries less than 0.95 of what Predict carries. On a machine that others use, rounds differ by far
more than the protocols do: then read the quartiles beside it, and the front end's processor time for each
call, which other load hardly touches.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np

from bench.report import Check, print_checks
from bench.server_process import ServerProcess
from tickring.kserve import grpc_service_pb2
from tickring.v1 import inference_pb2, types_pb2

LEAST = 0.95
MODEL = "sp500_direction"
PREDICT = "predict"
KSERVE = "kserve"
METHODS = {
    (PREDICT, "unary"): "/tickring.v1.InferenceService/Predict",
    (PREDICT, "stream"): "/tickring.v1.InferenceService/PredictStream",
    (KSERVE, "unary"): "/inference.GRPCInferenceService/ModelInfer",
    (KSERVE, "stream"): "/inference.GRPCInferenceService/ModelStreamInfer",
}
# A call that takes longer is lost.
PATIENCE_S = 30.0


def encoded(protocol: str, mode: str) -> bytes:
    """The request of the load: one window, most urgent."""
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    if protocol == KSERVE:
        return grpc_service_pb2.ModelInferRequest(
            model_name=MODEL,
            parameters={
                "priority": grpc_service_pb2.InferParameter(uint64_param=1),
                "timeout": grpc_service_pb2.InferParameter(int64_param=10_000_000),
            },
            inputs=[
                grpc_service_pb2.ModelInferRequest.InferInputTensor(
                    name="window", datatype="FP32", shape=window.shape
                )
            ],
            raw_input_contents=[window.tobytes()],
        ).SerializeToString()
    request = inference_pb2.PredictRequest(
        model_name=MODEL,
        priority=types_pb2.PRIORITY_REAL_TIME_TRADING,
        inputs=[
            types_pb2.Tensor(
                name="window",
                data_type=types_pb2.DATA_TYPE_FP32,
                shape=window.shape,
                data=window.tobytes(),
            )
        ],
    )
    request.timeout.FromSeconds(10)
    if mode == "stream":
        return inference_pb2.PredictStreamRequest(sequence=1, request=request).SerializeToString()
    return request.SerializeToString()


async def generate(target: str, protocol: str, mode: str, in_flight: int, calls: int) -> float:
    """Calls per second, after as many as are in flight to warm up."""
    raw = encoded(protocol, mode)
    async with grpc.aio.insecure_channel(target) as channel:
        method = METHODS[protocol, mode]
        run = _unary if mode == "unary" else _stream
        await run(channel, method, raw, in_flight, in_flight)
        started = time.perf_counter()
        await run(channel, method, raw, in_flight, calls)
        return calls / (time.perf_counter() - started)


async def _unary(channel: grpc.aio.Channel, method: str, raw: bytes, in_flight: int, calls: int) -> None:
    call = channel.unary_unary(method, None, None)
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(raw, timeout=PATIENCE_S)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def _stream(channel: grpc.aio.Channel, method: str, raw: bytes, in_flight: int, calls: int) -> None:
    room = asyncio.Semaphore(in_flight)

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(calls):
            await room.acquire()
            yield raw

    answers = 0
    async for _ in channel.stream_stream(method, None, None)(requests()):
        answers += 1
        room.release()
    if answers != calls:
        raise RuntimeError(f"{answers} answers to {calls} requests")


def measure(target: str, protocol: str, mode: str, in_flight: int, calls: int) -> float:
    """Calls per second of a fresh generator process."""
    command = [sys.executable, "-m", "bench.kserve", "--target", target, "--protocol", protocol]
    command += ["--mode", mode, "--in-flight", str(in_flight), "--calls", str(calls)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> int:
    """Prints rounds and verdict; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--mode", choices=["unary", "stream"], default="unary")
    parser.add_argument("--target", help=argparse.SUPPRESS)  # of the generator process
    parser.add_argument("--protocol", choices=[PREDICT, KSERVE], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    mode, in_flight, calls = arguments.mode, arguments.in_flight, arguments.calls
    if arguments.target:
        print(asyncio.run(generate(arguments.target, arguments.protocol, mode, in_flight, calls)))
        return 0

    ratios = []
    cpu_us: dict[str, list[float]] = {PREDICT: [], KSERVE: []}
    with ServerProcess({"TICKRING_SERVER__FRONTENDS": "1"}) as server:
        print(f"{mode}, {in_flight} in flight, {calls} calls a round; calls per second")
        frontend = server.child("frontend")
        for number in range(arguments.rounds):
            order = (PREDICT, KSERVE) if number % 2 == 0 else (KSERVE, PREDICT)
            rates = {}
            for each in order:
                before = sum(frontend.cpu_times()[:2])
                rates[each] = measure(server.target, each, mode, in_flight, calls)
                used_s = sum(frontend.cpu_times()[:2]) - before
                cpu_us[each].append(used_s / (calls + in_flight) * 1e6)
            ratios.append(rates[KSERVE] / rates[PREDICT])
            print(
                f"round {number + 1}: Predict {rates[PREDICT]:.0f}, ModelInfer {rates[KSERVE]:.0f}, "
                f"ratio {ratios[-1]:.3f}"
            )
    low, high = np.quantile(ratios, [0.25, 0.75])
    used = {each: statistics.median(values) for each, values in cpu_us.items()}
    print(
        f"ratios: quartiles {low:.3f} and {high:.3f}, {min(ratios):.3f} to {max(ratios):.3f}\n"
        f"front end, processor time a call: Predict {used[PREDICT]:.0f} us, ModelInfer {used[KSERVE]:.0f} us"
    )
    return print_checks(
        [Check("ModelInfer over Predict, throughput", statistics.median(ratios), LEAST, "", at_most=False)]
    )


if __name__ == "__main__":
    sys.exit(main())
