"""Predictions that a front end makes for itself, to see whether callers would get theirs.

They take the path of every request from its bytes on: parse, check, admit, slots, lanes, a batch, the
model and back. What is not tried is the network. They are of the most urgent class, whose requests wait for
nobody's company and stand back behind nobody: what they take is what the service promises. One row of each
model at a time is what that costs.
"""

import asyncio
from typing import Any

import numpy as np

from scheduler import _ring
from scheduler.errors import ModelFailed, RequestError
from scheduler.priority import PriorityClass
from scheduler.signature import ModelSignature, TensorSpec
from server.models import ModelTable
from server.rpc.desk import Desk, Ticket
from server.rpc.inference import PredictDialect
from tickring.v1 import inference_pb2, types_pb2


async def try_models(desk: Desk, models: ModelTable, timeout_s: float) -> list[dict[str, Any]]:
    """One prediction of every loaded version, one after the other, all within this time.

    Returns for each of them `model_name`, `model_version`, `ms`, `error`, which is empty where it was
    answered, and `by_model`: whether the error is the model's, which may be one that cannot do with zeros.
    """
    dialect = PredictDialect()
    until_ns = _ring.now_ns() + int(timeout_s * 1e9)
    found = []
    for model in list(models.loaded()):
        signature = model.signature
        began_ns = _ring.now_ns()
        error: RequestError | None = None
        try:
            await _predict(desk, dialect, zeros(signature), until_ns)
        except RequestError as failed:
            error = failed
        except TimeoutError:
            error = RequestError(f"no answer within {timeout_s:g} s")
        found.append(
            {
                "model_name": signature.name,
                "model_version": str(signature.version),
                "ms": (_ring.now_ns() - began_ns) / 1e6,
                "error": "" if error is None else str(error),
                "by_model": isinstance(error, ModelFailed),
            }
        )
    return found


def zeros(signature: ModelSignature) -> bytes:
    """A request of one row of zeros, of dynamic shapes the smallest that has an element."""
    request = inference_pb2.PredictRequest(
        model_name=signature.name,
        model_version=str(signature.version),
        priority=types_pb2.Priority.Name(PriorityClass.REAL_TIME_TRADING.value),
        inputs=[_zero_tensor(spec) for spec in signature.inputs],
    )
    return request.SerializeToString()


def _zero_tensor(spec: TensorSpec) -> types_pb2.Tensor:
    bounds = zip(spec.smallest, spec.largest, strict=True)
    shape = (1, *(max(low, min(1, high)) for low, high in bounds))
    return types_pb2.Tensor(
        name=spec.name,
        data_type=types_pb2.DataType.Name(spec.data_type.proto_value),
        shape=shape,
        data=np.zeros(shape, spec.data_type.dtype).tobytes(),
    )


async def _predict(desk: Desk, dialect: PredictDialect, raw: bytes, until_ns: int) -> None:
    """Raises RequestError as a caller would be told, or TimeoutError."""
    answered: asyncio.Future[bytes | RequestError] = asyncio.get_running_loop().create_future()

    def answer(_ticket: Ticket, result: bytes | RequestError) -> None:
        if not answered.done():
            answered.set_result(result)

    arrived_ns = _ring.now_ns()
    ticket = desk.submit(dialect, dialect.parse(raw), arrived_ns, until_ns, None, answer)
    try:
        async with asyncio.timeout(max(0.0, (until_ns - arrived_ns) / 1e9)):
            result = await answered
    except BaseException:
        ticket.cancel()
        raise
    if isinstance(result, RequestError):
        raise result
