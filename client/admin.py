"""The async client of the admin port: models, settings, status and the end of a server."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from client.admin_codec import read_settings, read_status
from client.admin_info import ServerStatus, SettingsChange, SettingsInfo
from client.channel import DEFAULT_ADMIN_TARGET, TlsFiles, admin_rpcs
from client.client import CONTROL_TIMEOUT_S
from client.codec import read_model
from client.link import Link
from client.model_info import ModelInfo
from tickring.v1 import admin_pb2

# Of what may load models, or start engines anew.
CHANGE_TIMEOUT_S = 600.0


class AdminClient:
    """One connection to the admin port of a tickring server.

        async with AdminClient("127.0.0.1:8003") as admin:
            await admin.update_settings({"scheduler.latency_budget_ms": "8"})

    Connection, `tls`, `token` and `allow_clear_text` are as with `Client`. Nothing is tried again: a change
    that has begun goes on at the server when its call is cancelled or its timeout is over. Every method
    raises `PredictionError` or a subclass for what the server or the network answered, `Cancelled` where
    `close` came first, and `OSError` where a TLS file cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_ADMIN_TARGET,
        *,
        tls: TlsFiles | None = None,
        token: str | None = None,
        allow_clear_text: bool = False,
    ) -> None:
        self._link = Link(target, tls, token, allow_clear_text, admin_rpcs)

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
        await self._link.close()

    async def load_model(
        self, name: str, version: str = "", *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> ModelInfo:
        """Returns once this version, or the newest, answers requests; what is loaded stays as it is.

        Raises `NotFound`, or `NotReady` with the reason CANNOT_LOAD.
        """
        request = admin_pb2.LoadModelRequest(model_name=name, model_version=version)
        answer = await self._link.call(self._link.rpcs.load_model, request, timeout_s)
        return read_model(answer.model)

    async def unload_model(
        self, name: str, version: str = "", *, timeout_s: float = CHANGE_TIMEOUT_S
    ) -> None:
        """Returns once this version, or the whole model, is out of service.

        Raises `NotFound`, or `NotReady` with the reason CANNOT_UNLOAD.
        """
        request = admin_pb2.UnloadModelRequest(model_name=name, model_version=version)
        await self._link.call(self._link.rpcs.unload_model, request, timeout_s)

    async def settings(self, *, timeout_s: float = CONTROL_TIMEOUT_S) -> SettingsInfo:
        """Every setting with its value, where that comes from, and what a change takes."""
        answer = await self._link.call(
            self._link.rpcs.get_settings, admin_pb2.GetSettingsRequest(), timeout_s
        )
        return read_settings(answer)

    async def update_settings(
        self,
        updates: Mapping[str, str | None],
        *,
        expected_version: int | None = None,
        validate_only: bool = False,
        timeout_s: float = CHANGE_TIMEOUT_S,
    ) -> SettingsChange:
        """Changes settings by their paths, all of them or none; None takes back what was set at run time.

        `expected_version` is that of the settings which these changes were made for; None: any.

        Raises `InvalidRequest` for what would be wrong, `NotReady` with the reason NEEDS_RESTART, or
        `SettingsChanged` where the settings are of another version.
        """
        request = admin_pb2.UpdateSettingsRequest(
            updates=[admin_pb2.SettingUpdate(path=path, value=value) for path, value in updates.items()],
            expected_version=expected_version or 0,
            validate_only=validate_only,
        )
        answer = await self._link.call(self._link.rpcs.update_settings, request, timeout_s)
        return SettingsChange(answer.version, tuple(answer.changed_paths))

    async def status(self, *, deep: bool = False, timeout_s: float = CONTROL_TIMEOUT_S) -> ServerStatus:
        """What was admitted and how it ended, what the last minute was like, and whether promises are kept.

        `deep`: try a prediction of every model by every front end as well.
        """
        request = admin_pb2.GetStatusRequest(deep=deep)
        return read_status(await self._link.call(self._link.rpcs.get_status, request, timeout_s))

    async def drain(self, *, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        """Ends the server as SIGTERM does; returns as soon as it has begun to."""
        await self._link.call(self._link.rpcs.drain, admin_pb2.DrainRequest(), timeout_s)
