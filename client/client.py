"""The async client: predictions over a shared RPC stream or one RPC each, models, health."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
import numpy.typing as npt
from grpc_health.v1 import health_pb2

from client.channel import DEFAULT_TARGET, TlsFiles, server_rpcs
from client.codec import read_model, read_response, write_request
from client.errors import DeadlineExceeded, NotFound, Unavailable, invalid
from client.link import Link
from client.model_info import ModelInfo
from client.prediction import Prediction
from client.retry import RetryPolicy
from client.stream import Multiplexer, StreamCall
from tickring.v1 import inference_pb2, model_pb2

MAX_TIMEOUT_S = 86_400.0
# Questions about the server, which do no work there.
CONTROL_TIMEOUT_S = 10.0
READY_POLL_S = 0.1

_DEFAULT_RETRIES = RetryPolicy()


class Client:
    """One connection to a tickring server, for any number of concurrent callers on one event loop.

        async with Client("127.0.0.1:8001") as client:
            prediction = await client.predict({"window": window}, priority="high", timeout_s=0.1)
            prediction["regression_mean"]  # float32, shape [n, 1]

    The constructor connects nothing and needs no event loop; the first call does. `token` is sent as
    `authorization: Bearer`, and never in clear text over a network: without `tls` it raises ValueError for a
    target that is not on this machine, unless `allow_clear_text` says that the network can be trusted.
    `retries` applies to predictions, which have no side effects, and only after UNAVAILABLE. Every method
    raises `PredictionError` or a subclass for what the server or the network answered, `Cancelled` where
    `close` came first, and `OSError` where a TLS file cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsFiles | None = None,
        token: str | None = None,
        allow_clear_text: bool = False,
        retries: RetryPolicy = _DEFAULT_RETRIES,
    ) -> None:
        self._link = Link(target, tls, token, allow_clear_text, server_rpcs)
        self._retries = retries
        self._multiplexer = Multiplexer(self._open_predict_stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; outstanding and later calls fail with `Cancelled`."""
        self._link.refuse_calls()
        await self._multiplexer.close()
        await self._link.close()

    async def predict(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        model: str = "",
        version: str = "",
        priority: str | int | None = None,
        timeout_s: float | None = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        routing_key: str = "",
    ) -> Prediction:
        """Runs a model on n rows, over the RPC stream that all callers of this client share. The fast path.

        `inputs` maps every input's name to an array of shape [n, *per-item shape] with exactly the model's
        dtype (Python floats make float64). `model` and `version` empty: the server's default; `outputs`
        empty: all. `priority` is a `Priority`, its name in any case, "high", "normal", "low" or 1 to 5;
        None leaves it to the server. `timeout_s` covers everything, retries too; None means the timeout of
        the priority class at the server, while this side waits as long as the RPC stream lives.
        `request_id` and `routing_key`: at most 128 bytes.

        At most `stream.MAX_IN_FLIGHT` requests are outstanding, the next one waits. Cancelling the awaiting
        task drops the answer; the server may still compute it.
        """
        deadline = self._deadline(timeout_s)
        message = inference_pb2.PredictStreamRequest()
        write_request(
            message.request,
            inputs,
            model=model,
            version=version,
            priority=priority,
            outputs=outputs,
            request_id=request_id,
            routing_key=routing_key,
        )
        return await self._with_retries(lambda: self._multiplexer.predict(message, deadline), deadline)

    async def predict_unary(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        model: str = "",
        version: str = "",
        priority: str | int | None = None,
        timeout_s: float | None = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        routing_key: str = "",
    ) -> Prediction:
        """The same as `predict` in an RPC of its own, whose deadline is `timeout_s` from now.

        Costs client and server about twice as much; cancelling the awaiting task cancels it at the server.
        """
        deadline = self._deadline(timeout_s)
        request = inference_pb2.PredictRequest()
        write_request(
            request,
            inputs,
            model=model,
            version=version,
            priority=priority,
            outputs=outputs,
            request_id=request_id,
            routing_key=routing_key,
        )
        return await self._with_retries(lambda: self._predict_once(request, deadline), deadline)

    async def models(self, *, timeout_s: float = CONTROL_TIMEOUT_S) -> list[ModelInfo]:
        """All models of the server, ordered by name."""
        rpc = self._link.rpcs.list_models
        answer = await self._link.call(rpc, model_pb2.ListModelsRequest(), timeout_s)
        return [read_model(model) for model in answer.models]

    async def model(self, name: str = "", *, timeout_s: float = CONTROL_TIMEOUT_S) -> ModelInfo:
        """One model; empty: the server's default. Raises `NotFound`."""
        rpc = self._link.rpcs.get_model
        answer = await self._link.call(rpc, model_pb2.GetModelRequest(model_name=name), timeout_s)
        return read_model(answer.model)

    async def health(self, service: str = "", *, timeout_s: float = CONTROL_TIMEOUT_S) -> str:
        """What grpc.health.v1 says of `service`, for example "SERVING" or "NOT_SERVING".

        Empty asks for the server as a whole. Raises `NotFound` for a service the server does not know.
        """
        rpc = self._link.rpcs.check
        try:
            answer = await self._link.call(rpc, health_pb2.HealthCheckRequest(service=service), timeout_s)
        except NotFound as error:  # the standard servicer says nothing more
            message = error.message or f"the server keeps no health of {service!r}"
            raise NotFound(error.code, message) from error
        try:
            status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        except ValueError:
            status = str(answer.status)  # a newer server's
        return status

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns as soon as the server serves; it need not have been started yet.

        Raises `DeadlineExceeded` with the last thing seen when `timeout_s` is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            try:
                seen = await self.health(timeout_s=min(deadline - loop.time(), CONTROL_TIMEOUT_S))
            except (Unavailable, DeadlineExceeded) as error:
                seen = str(error)
            if seen == "SERVING":
                return
            if loop.time() + READY_POLL_S >= deadline:
                raise DeadlineExceeded(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"{self._link.target} was not ready after {timeout_s:g} s; last seen: {seen}",
                )
            await asyncio.sleep(READY_POLL_S)

    def _open_predict_stream(self) -> StreamCall:
        return self._link.rpcs.predict_stream(None, metadata=self._link.metadata)

    async def _predict_once(
        self, request: inference_pb2.PredictRequest, deadline: float | None
    ) -> inference_pb2.PredictResponse:
        remaining_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
        return await self._link.call(self._link.rpcs.predict, request, remaining_s)

    async def _with_retries(
        self, attempt_once: Callable[[], Awaitable[inference_pb2.PredictResponse]], deadline: float | None
    ) -> Prediction:
        """Bounded by the policy, which gives up by returning None."""
        attempt = 1
        while True:
            try:
                return read_response(await attempt_once())
            except Unavailable as error:
                remaining_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
                wait_s = self._retries.wait_s(attempt, error.retry_after_s, remaining_s, random.random())
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
            attempt += 1

    def _deadline(self, timeout_s: float | None) -> float | None:
        """The end of `timeout_s` in the loop's time. Raises `InvalidRequest` for a timeout that is none."""
        if timeout_s is None:
            return None
        if not 0 < timeout_s <= MAX_TIMEOUT_S:  # also refuses NaN
            raise invalid(f"timeout_s is {timeout_s}; allowed: over 0, up to {MAX_TIMEOUT_S:g}", "timeout")
        return asyncio.get_running_loop().time() + timeout_s
