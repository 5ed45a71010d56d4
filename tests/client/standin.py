"""A scripted server for the client's tests: real sockets, no model. What happens is chosen by `model_name`.

    echo       answers with its inputs
    request    answers with the request itself, serialised, and what the RPC's deadline leaves (ns)
    hold       is answered by a later `release` with the same routing_key
    held       waits until `version` requests of that routing_key are held
    release    waits until `version` requests are held, answers them last first, then itself
    status     fails with the code that routing_key names, and every kind of detail
    flaky      routing_key "<key>:<n>:<retry_ms or empty>": fails n times with the code that version names
               (empty: UNAVAILABLE), then says how many came
    counts     says how many PredictStream RPCs were opened
    metadata   says what authorization came with the RPC
    malformed  answers with a tensor of the wrong size
    neither    (stream) answers with neither response nor error
    break      (stream) ends the RPC, whatever is outstanding, with the code that version names; the next of
               the same routing_key is answered

Prints its port when it listens, and ends when its standard input does.
"""

import argparse
import asyncio
import collections
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tickring.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc, types_pb2

SCRIPTED_TIMING = inference_pb2.Timing(
    queue_wait_ns=11, compute_ns=22, server_ns=44, batch_size=3, batch_bucket=4, cache_hit=False
)


class ScriptedError(Exception):
    """A request that the script lets fail."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Any) -> None:
        super().__init__(message)
        self.status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            self.status.details.append(packed)


class Script:
    """What the requests do, over whichever RPC they come."""

    def __init__(self) -> None:
        self.streams = 0
        self._broken: set[str] = set()
        self._attempts: collections.Counter[str] = collections.Counter()
        self._held: dict[str, list[asyncio.Future[None]]] = collections.defaultdict(list)
        self._arrival = asyncio.Condition()

    async def answer(
        self, request: inference_pb2.PredictRequest, context: Any
    ) -> inference_pb2.PredictResponse:
        response = inference_pb2.PredictResponse(
            request_id=request.request_id, model_name=request.model_name, model_version="7"
        )
        response.timing.CopyFrom(SCRIPTED_TIMING)
        if request.model_name == "request":
            remaining_s = context.time_remaining()
            add(response, "request", np.frombuffer(request.SerializeToString(), np.uint8))
            add(response, "remaining_ns", np.array([int((remaining_s or 0) * 1e9)]))
        elif request.model_name == "hold":
            await self._hold(request.routing_key)
        elif request.model_name == "held":
            await self._wait_held(request.routing_key, int(request.model_version))
        elif request.model_name == "release":
            await self._wait_held(request.routing_key, int(request.model_version or 0))
            self._release(request.routing_key)
        elif request.model_name == "status":
            raise scripted_failure(request.routing_key)
        elif request.model_name == "flaky":
            add(response, "attempts", np.array([self._try(request.routing_key, request.model_version)]))
            add(response, "request", np.frombuffer(request.SerializeToString(), np.uint8))
        elif request.model_name == "counts":
            add(response, "streams", np.array([self.streams]))
        elif request.model_name == "metadata":
            sent = dict(context.invocation_metadata()).get("authorization", "")
            add(response, "authorization", np.frombuffer(sent.encode() + b"\n", np.uint8))
        elif request.model_name == "malformed":
            response.outputs.add(name="x", data_type=types_pb2.DATA_TYPE_FP32, shape=[1, 3], data=b"12345678")
        else:
            response.outputs.extend(request.inputs)
        return response

    def breaks(self, request: inference_pb2.PredictRequest) -> bool:
        """Whether `request` is the first break of its key."""
        if request.model_name != "break" or request.routing_key in self._broken:
            return False
        self._broken.add(request.routing_key)
        return True

    async def _hold(self, key: str) -> None:
        released = asyncio.get_running_loop().create_future()
        async with self._arrival:
            self._held[key].append(released)
            self._arrival.notify_all()
        await released

    async def _wait_held(self, key: str, wanted: int) -> None:
        async with self._arrival:
            await self._arrival.wait_for(lambda: len(self._held[key]) >= wanted)

    def _release(self, key: str) -> None:
        for released in reversed(self._held.pop(key, [])):
            if not released.done():
                released.set_result(None)

    def _try(self, key: str, code_name: str) -> int:
        _, failures, retry_ms = key.split(":")
        self._attempts[key] += 1
        if self._attempts[key] <= int(failures):
            details = [retry_info(int(retry_ms) / 1000)] if retry_ms else []
            raise ScriptedError(grpc.StatusCode[code_name or "UNAVAILABLE"], "scripted outage", *details)
        return self._attempts[key]


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> Any:
        try:
            return await self._script.answer(request, context)
        except ScriptedError as error:
            await context.abort_with_status(rpc_status.to_status(error.status))

    async def PredictStream(
        self, requests: AsyncIterator[inference_pb2.PredictStreamRequest], context: Any
    ) -> None:
        self._script.streams += 1
        writing = asyncio.Lock()
        answering: set[asyncio.Task[None]] = set()
        try:
            async for message in requests:
                if self._script.breaks(message.request):
                    code = grpc.StatusCode[message.request.model_version]
                    if code is not grpc.StatusCode.OK:
                        await context.abort(code, "scripted break")
                    return
                task = asyncio.create_task(self._answer(message, context, writing))
                answering.add(task)
                task.add_done_callback(answering.discard)
        finally:
            for task in answering:
                task.cancel()

    async def _answer(
        self, message: inference_pb2.PredictStreamRequest, context: Any, writing: asyncio.Lock
    ) -> None:
        answer = inference_pb2.PredictStreamResponse(sequence=message.sequence)
        try:
            response = await self._script.answer(message.request, context)
            if message.request.model_name != "neither":
                answer.response.CopyFrom(response)
        except ScriptedError as error:
            answer.error.CopyFrom(error.status)
        async with writing:
            await context.write(answer)


class Models(model_pb2_grpc.ModelServiceServicer):
    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> Any:
        return model_pb2.ListModelsResponse(models=[window_model("echo"), pair_model()])

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> Any:
        if request.model_name == "missing":
            error = ScriptedError(
                grpc.StatusCode.NOT_FOUND,
                "no model 'missing'; there are echo, pair",
                error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="tickring"),
            )
            await context.abort_with_status(rpc_status.to_status(error.status))
        if request.model_name == "pair":
            return model_pb2.GetModelResponse(model=pair_model())
        return model_pb2.GetModelResponse(model=window_model(request.model_name or "echo"))


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped in its package
    def __init__(self, not_serving: int) -> None:
        self._not_serving = not_serving

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        if request.service not in ("", "starting"):
            await context.abort(grpc.StatusCode.NOT_FOUND)  # as the standard servicer does
        if request.service == "starting" or self._not_serving > 0:
            self._not_serving -= 1
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def add(response: inference_pb2.PredictResponse, name: str, array: Any) -> None:
    """Adds an array of one row as an output."""
    data_type = {"uint8": types_pb2.DATA_TYPE_UINT8, "int64": types_pb2.DATA_TYPE_INT64}[array.dtype.name]
    response.outputs.add(name=name, data_type=data_type, shape=[1, array.size], data=array.tobytes())


def scripted_failure(code_name: str) -> ScriptedError:
    """A failure with one detail of every kind."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field="inputs[0].shape", description="wrong"),
        error_details_pb2.BadRequest.FieldViolation(field="inputs[1].shape", description="wrong too"),
    ]
    return ScriptedError(
        grpc.StatusCode[code_name],
        f"scripted {code_name}",
        error_details_pb2.QuotaFailure(),
        error_details_pb2.ErrorInfo(reason="SCRIPTED", domain="tickring"),
        error_details_pb2.BadRequest(field_violations=violations),
        retry_info(1.5),
    )


def retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(delay_s * 1e9))
    return info


def window_model(name: str) -> model_pb2.Model:
    """One FP32 input of [2, 3] per item."""
    model = model_pb2.Model(name=name, description="gives back what it gets", format="scripted", max_rows=64)
    model.is_default = name == "echo"
    model.versions.add(version="6", state=model_pb2.MODEL_STATE_AVAILABLE, sha256="60" * 32)
    model.versions.add(version="7", state=model_pb2.MODEL_STATE_READY, sha256="70" * 32)
    model.inputs.add(name="window", data_type=types_pb2.DATA_TYPE_FP32, shape=[2, 3])
    model.outputs.add(name="window", data_type=types_pb2.DATA_TYPE_FP32, shape=[2, 3])
    return model


def pair_model() -> model_pb2.Model:
    """Two inputs: INT64 [2] and BOOL [1] per item."""
    model = model_pb2.Model(name="pair", format="scripted", max_rows=64)
    model.inputs.add(name="a", data_type=types_pb2.DATA_TYPE_INT64, shape=[2])
    model.inputs.add(name="b", data_type=types_pb2.DATA_TYPE_BOOL, shape=[1])
    model.outputs.add(name="a", data_type=types_pb2.DATA_TYPE_INT64, shape=[2])
    return model


async def serve(port: int, not_serving: int, tls: Path | None) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(Script()), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(not_serving), server)
    address = f"127.0.0.1:{port}"
    if tls is None:
        port = server.add_insecure_port(address)
    else:
        cert, key = (tls / "cert.pem").read_bytes(), (tls / "key.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([(key, cert)], cert, require_client_auth=True)
        port = server.add_secure_port(address, credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--not-serving", type=int, default=0, help="first health checks that say NOT_SERVING")
    parser.add_argument("--tls", type=Path, help="folder with cert.pem and key.pem")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.not_serving, options.tls))
