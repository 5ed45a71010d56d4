"""What gRPC itself takes: a server of grpc.aio that answers every call at once, with nothing behind it.

    python -m bench.echo

Run as a front end is, on uvloop and without gRPC's event engine (docs/decisions/0004). Prints its port, and
ends with its stdin.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from tickring.v1 import inference_pb2, types_pb2

SERVICE = "tickring.v1.InferenceService"
OUTPUT_BYTES = 544  # of the bundled model, for one window


def _answer() -> inference_pb2.PredictResponse:
    tensor = types_pb2.Tensor(name="all", data_type=types_pb2.DATA_TYPE_UINT8, shape=(1, OUTPUT_BYTES))
    tensor.data = bytes(OUTPUT_BYTES)
    return inference_pb2.PredictResponse(model_name="echo", outputs=[tensor])


async def _serve() -> None:
    answer = _answer().SerializeToString()

    async def unary(_raw: bytes, _context: Any) -> bytes:
        return answer

    async def stream(messages: AsyncIterator[bytes], context: Any) -> None:
        async for raw in messages:
            # The least that makes it an answer to this message.
            sequence = inference_pb2.PredictStreamRequest.FromString(raw).sequence
            message = inference_pb2.PredictStreamResponse(sequence=sequence, response=_answer())
            await context.write(message.SerializeToString())

    server = grpc.aio.server()
    handlers = {
        "Predict": grpc.unary_unary_rpc_method_handler(unary),
        "PredictStream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """One in a process of its own; its target."""
    environment = {"GRPC_EXPERIMENTS": "-event_engine_listener", **os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


if __name__ == "__main__":
    uvloop.run(_serve())
