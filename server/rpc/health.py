"""grpc.health.v1: whether the server as a whole, each service and each model serves."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from server.rpc.request import MAX_QUOTED

SERVICE = "grpc.health.v1.Health"

Context = grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]


class HealthService:
    """The handlers of grpc.health.v1.Health. Belongs to the event loop.

    Not grpcio-health-checking's: its watchers stay until their client leaves, so one of them makes
    every drain last the whole grace period.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._draining = False
        self._changed = asyncio.Event()

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        coding = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, **coding),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **coding),
            },
        )

    def set(self, services: Iterable[str], *, serving: bool) -> None:
        """Tells whoever watches one of these. The name of the server as a whole is empty."""
        self._serving.update(dict.fromkeys(services, serving and not self._draining))
        self._tell()

    def forget(self, services: Iterable[str]) -> None:
        """These are there no more."""
        for service in services:
            self._serving.pop(service, None)
        self._tell()

    def drain(self) -> None:
        """Nothing serves from now on; watchers are told so and end."""
        self._draining = True
        self.set(self._serving, serving=False)

    async def check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The state of one service, or NOT_FOUND."""
        if request.service not in self._serving:
            known = ", ".join(name for name in self._serving if name)
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {request.service[:MAX_QUOTED]!r}; services are {known}, or none for all",
            )
        return HealthCheckResponse(status=self._status(request.service))

    async def watch(self, request: HealthCheckRequest, context: Context) -> None:
        """The state of one service, now and whenever it changes, until the client leaves or a drain."""
        told = None
        while True:
            # Before the status is read: what changes after that, sets it.
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            elif self._draining:
                return
            else:
                await changed.wait()

    def _status(self, service: str) -> "HealthCheckResponse.ServingStatus":
        serving = self._serving.get(service)
        if serving is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
