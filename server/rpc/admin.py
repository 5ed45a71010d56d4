"""AdminService: models, settings and the state of a running server, and its end."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from scheduler.clock import Clock, MonotonicClock
from scheduler.errors import InvalidRequest, RequestError
from server.administration import Administration, InvalidSettings, Reports, Setting
from server.problems import SettingsError, shown
from server.rpc.admin_status import status_message
from server.rpc.model_message import model_message
from server.status import abort
from tickring.v1 import admin_pb2

SERVICE = "tickring.v1.AdminService"
MAX_UPDATES = 256

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_NO_TRAFFIC = "traffic is not split between versions by this server yet: the newest version is served"

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Message]]
Changed = TypeVar("Changed")

log = structlog.get_logger()


class AdminService:
    """The handlers of tickring.v1.AdminService. Belongs to the event loop of its administration."""

    def __init__(
        self,
        administration: Administration,
        reports: Reports,
        caller_of: Callable[[Context], str],
        clock: Clock | None = None,
    ) -> None:
        """`caller_of`: who calls, for the log; see `server.access`. Uptime is counted from here on."""
        self._administration = administration
        self._reports = reports
        self._caller_of = caller_of
        self._clock = clock or MonotonicClock()
        self._started_ns = self._clock.now_ns()
        # The loop has only weak references to its tasks.
        self._changes: set[asyncio.Task[Any]] = set()

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        methods: dict[str, tuple[Method, type[Message]]] = {
            "LoadModel": (self.load_model, admin_pb2.LoadModelRequest),
            "UnloadModel": (self.unload_model, admin_pb2.UnloadModelRequest),
            "SetTraffic": (self.set_traffic, admin_pb2.SetTrafficRequest),
            "GetSettings": (self.get_settings, admin_pb2.GetSettingsRequest),
            "UpdateSettings": (self.update_settings, admin_pb2.UpdateSettingsRequest),
            "GetStatus": (self.get_status, admin_pb2.GetStatusRequest),
            "Drain": (self.drain, admin_pb2.DrainRequest),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    _refusing(method),
                    request_deserializer=request.FromString,
                    response_serializer=lambda response: response.SerializeToString(),
                )
                for name, (method, request) in methods.items()
            },
        )

    async def load_model(
        self, request: admin_pb2.LoadModelRequest, context: Context
    ) -> admin_pb2.LoadModelResponse:
        """Returns once the version serves."""
        name, version = _model(request)
        author = self._caller_of(context)
        await self._carry_through(self._administration.load_model(name, version, author))
        return admin_pb2.LoadModelResponse(model=model_message(self._administration.describe(name)))

    async def unload_model(
        self, request: admin_pb2.UnloadModelRequest, context: Context
    ) -> admin_pb2.UnloadModelResponse:
        """Returns once nothing of it is in flight."""
        name, version = _model(request)
        author = self._caller_of(context)
        await self._carry_through(self._administration.unload_model(name, version, author))
        return admin_pb2.UnloadModelResponse()

    async def set_traffic(
        self, _request: admin_pb2.SetTrafficRequest, context: Context
    ) -> admin_pb2.SetTrafficResponse:
        """Not served yet."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_TRAFFIC)
        raise AssertionError("unreachable: abort raises")

    async def get_settings(
        self, _request: admin_pb2.GetSettingsRequest, _context: Context
    ) -> admin_pb2.GetSettingsResponse:
        """All of them."""
        current = self._administration.current_settings()
        return admin_pb2.GetSettingsResponse(
            version=current.version,
            profile=current.profile,
            settings=[_setting(setting) for setting in current.settings],
        )

    async def update_settings(
        self, request: admin_pb2.UpdateSettingsRequest, context: Context
    ) -> admin_pb2.UpdateSettingsResponse:
        """All of the updates or none."""
        updates = _updates(request)
        expected = request.expected_version
        if expected < 0:
            raise InvalidRequest("expected_version", f"is {expected}, must be a version, or 0 for any")
        change = await self._carry_through(
            self._administration.update_settings(
                updates,
                expected_version=expected or None,
                validate_only=request.validate_only,
                author=self._caller_of(context),
            )
        )
        return admin_pb2.UpdateSettingsResponse(version=change.version, changed_paths=change.paths)

    async def get_status(
        self, request: admin_pb2.GetStatusRequest, _context: Context
    ) -> admin_pb2.GetStatusResponse:
        """The books, as they are at this instant, and what the last second and minute were like."""
        report = self._reports.report()
        if request.deep:
            report["health"] = await self._reports.health()
        current = self._administration.current_settings()
        return status_message(
            self._administration.books(),
            {**report, "profile": current.profile},
            settings_version=current.version,
            uptime_ns=self._clock.now_ns() - self._started_ns,
        )

    async def drain(self, _request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        """Returns at once: the port stays until this is answered, see `AdminPort.stop`."""
        log.info("drain asked for", author=self._caller_of(context))
        self._administration.drain()
        return admin_pb2.DrainResponse()

    async def _carry_through(self, change: Coroutine[Any, Any, Changed]) -> Changed:
        """What the change gives. It goes on where the caller leaves: half of it is worse than all or none."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_nobody)
            raise


def _tell_nobody(task: asyncio.Task[Any]) -> None:
    """Whoever asked for this change has left: how it failed goes to the log."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, SettingsError | RequestError):
        log.warning("change refused after its caller had left", error=str(error))
    elif error is not None:
        log.error("change failed after its caller had left", exc_info=error)


def _refusing(method: Method) -> Method:
    """The same method, whose expected errors end the call."""

    async def behaviour(request: Any, context: Context) -> Message:
        try:
            return await method(request, context)
        except SettingsError as error:
            await abort(context, InvalidSettings(error))
        except RequestError as error:
            await abort(context, error)

    return behaviour


def _model(request: admin_pb2.LoadModelRequest | admin_pb2.UnloadModelRequest) -> tuple[str, int | None]:
    if not request.model_name:
        raise InvalidRequest("model_name", "is empty, must be the name of a model")
    text = request.model_version
    if text and not _VERSION.fullmatch(text):
        raise InvalidRequest("model_version", f"is {shown(text)}, must be a positive integer or empty")
    return request.model_name, int(text) if text else None


def _updates(request: admin_pb2.UpdateSettingsRequest) -> dict[str, str | None]:
    if not 1 <= len(request.updates) <= MAX_UPDATES:
        raise InvalidRequest("updates", f"are {len(request.updates)}, must be 1 to {MAX_UPDATES}")
    updates: dict[str, str | None] = {}
    for index, update in enumerate(request.updates):
        if not update.path:
            raise InvalidRequest(f"updates[{index}].path", "is empty, must be the path of a setting")
        if update.path in updates:
            raise InvalidRequest(f"updates[{index}].path", f"{shown(update.path)} is there twice")
        updates[update.path] = update.value if update.HasField("value") else None
    return updates


def _setting(setting: Setting) -> admin_pb2.Setting:
    return admin_pb2.Setting(
        path=setting.path,
        value=setting.value_text,
        origin=setting.origin,
        effect=f"SETTING_EFFECT_{setting.effect.name}",
    )
