"""The admin port: AdminService on a gRPC server of its own, in the supervisor's process.

It asks for the same certificate and tokens as the main port. Without tokens it listens on loopback only,
wherever the main port does.
"""

import asyncio

import grpc
import structlog
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from server.access import Access
from server.administration import Administration, Reports
from server.limits import channel_options
from server.ports import reserve_port
from server.rpc import health
from server.rpc.admin import SERVICE, AdminService
from server.security import is_loopback
from server.settings import Settings

log = structlog.get_logger()


class AdminPort:
    """One for a service, on its supervisor's event loop."""

    def __init__(self, settings: Settings, administration: Administration, reports: Reports) -> None:
        self._settings = settings
        self._administration = administration
        self._reports = reports
        self._health = health.HealthService()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    async def start(self) -> None:
        """Listens and serves.

        Raises:
            PortInUse: somebody else has the port.
            SettingsError: the certificate or the file of tokens cannot be used.
        """
        server_table = self._settings.server
        self._access = access = Access(self._settings)
        host = admin_host(self._settings)
        # Until gRPC listens there: it shares ports, and would not notice another server.
        with reserve_port(host, server_table.admin_port) as reservation:
            self._port = reservation.getsockname()[1]
            self._server = grpc.aio.server(
                options=channel_options(server_table),
                maximum_concurrent_rpcs=server_table.max_concurrent_rpcs,
            )
            self._add_services(self._server, access)
            access.add_port(self._server, server_table.model_copy(update={"host": host}).target(self._port))
            await self._server.start()
        if host != server_table.host:
            log.warning(
                "without auth.tokens_file the admin port is open on loopback only",
                listens_on=host,
                server_host=server_table.host,
            )
        self._keeping_up = asyncio.create_task(access.keep_up())

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._port

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls; those under way have so long to be answered."""
        if self._server is None:
            return
        self._health.drain()
        self._keeping_up.cancel()
        await self._server.stop(grace_s)

    def _add_services(self, server: grpc.aio.Server, access: Access) -> None:
        service = AdminService(self._administration, self._reports, access.caller_of)
        access.guard.add_generic_rpc_handlers((service.handler(), self._health.handler()))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
                (SERVICE, health.SERVICE, reflection.SERVICE_NAME)
            ),
            access.guard,
        )
        server.add_generic_rpc_handlers((access.guard,))
        self._health.set(("", SERVICE), serving=True)


def admin_host(settings: Settings) -> str:
    """The address that the admin port listens on: the server's, or loopback where anybody may call it."""
    host = settings.server.host
    if settings.auth.tokens_file is not None or is_loopback(host):
        return host
    # "::" takes IPv4 as well, and 127.0.0.1 is where clients look for it first.
    return "::1" if ":" in host and host != "::" else "127.0.0.1"
