"""inference.GRPCInferenceService: KServe's protocol v2 in Triton's form, on the same desk as our own.

docs/kserve.md says what is served and what a Triton client finds different.
"""

import importlib.metadata
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from scheduler.errors import InvalidRequest, RequestError, UnknownModel
from scheduler.signature import ModelSignature
from server.models import ModelTable
from server.rpc import kserve_models
from server.rpc.calls import Calls
from server.rpc.desk import Desk
from server.rpc.dialect import PLANS_KEPT, Dialect, Plan
from server.rpc.kserve_repository import EXTENSIONS as REPOSITORY_EXTENSIONS
from server.rpc.kserve_repository import RepositoryChanges
from server.rpc.kserve_request import check, parse
from server.rpc.kserve_response import InferResponsePlan, stream_error, stream_response
from server.rpc.request import CheckedRequest
from server.rpc.shaped_plan import plan_for
from server.settings import TelemetryTable
from server.status import abort
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.kserve import model_config_pb2 as config

SERVICE = "inference.GRPCInferenceService"
NAME = "tickring"
# Of those that Triton's clients know by name, what is served here.
EXTENSIONS = ("binary_tensor_data", "parameters", "schedule_policy", "model_configuration", "statistics")

_NO_LOADING = "models are loaded when the server starts; put versions into the repository and restart it"
_NO_SHARED_MEMORY = "shared memory is not served: send inputs as raw_input_contents"
_NO_TRACE_CHANGES = "trace settings can be read here, not changed"
_NO_LOG_CHANGES = "log settings can be read here, not changed; set telemetry.log_level and log_format"

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any], Awaitable[Any]]


class InferDialect(Dialect[kserve.ModelInferRequest, str]):
    """Marked by `id`."""

    unary_method = f"{SERVICE}/ModelInfer"
    stream_method = f"{SERVICE}/ModelStreamInfer"

    def __init__(self) -> None:
        self._plan = lru_cache(maxsize=PLANS_KEPT)(partial(plan_for, InferResponsePlan))

    def parse(self, raw: bytes) -> kserve.ModelInferRequest:
        """See `Dialect`."""
        return parse(raw)

    def check(
        self, message: kserve.ModelInferRequest, models: ModelTable, metadata_priority: str | None
    ) -> CheckedRequest:
        """See `Dialect`."""
        return check(message, models, metadata_priority)

    def model_name(self, message: kserve.ModelInferRequest) -> str:
        """See `Dialect`."""
        return message.model_name

    def plan(self, signature: ModelSignature, rows: int, outputs: tuple[int, ...]) -> Plan:
        """See `Dialect`."""
        return self._plan(signature, rows, outputs)

    def unwrap(self, raw: bytes) -> tuple[str, kserve.ModelInferRequest | RequestError]:
        """See `Dialect`."""
        try:
            message = parse(raw)
        except InvalidRequest as error:
            return "", error
        return message.id, message

    def stream_response(self, mark: str, response: bytes) -> bytes:
        """See `Dialect`. The id is in the response already."""
        return stream_response(response)

    def stream_error(self, mark: str, error: RequestError) -> bytes:
        """See `Dialect`."""
        return stream_error(mark, error)


class KserveService:
    """The handlers of inference.GRPCInferenceService."""

    def __init__(
        self,
        desk: Desk,
        models: ModelTable,
        telemetry: TelemetryTable,
        instances: Sequence[config.ModelInstanceGroup],
        max_in_flight_per_stream: int,
        changes: RepositoryChanges | None = None,
    ) -> None:
        """`changes` None: models are neither loaded nor unloaded by this protocol."""
        self._desk = desk
        self._models = models
        self._telemetry = telemetry
        self._instances = instances
        self._calls = Calls(desk, InferDialect(), max_in_flight_per_stream)
        self._changes = changes
        self._version = importlib.metadata.version(NAME)

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        changes = self._changes
        unary: dict[str, tuple[Method, type[Message]]] = {
            "ServerLive": (self.server_live, kserve.ServerLiveRequest),
            "ServerReady": (self.server_ready, kserve.ServerReadyRequest),
            "ModelReady": (self.model_ready, kserve.ModelReadyRequest),
            "ServerMetadata": (self.server_metadata, kserve.ServerMetadataRequest),
            "ModelMetadata": (self.model_metadata, kserve.ModelMetadataRequest),
            "ModelConfig": (self.model_config, kserve.ModelConfigRequest),
            "ModelStatistics": (self.model_statistics, kserve.ModelStatisticsRequest),
            "RepositoryIndex": (self.repository_index, kserve.RepositoryIndexRequest),
            "TraceSetting": (self.trace_setting, kserve.TraceSettingRequest),
            "LogSettings": (self.log_settings, kserve.LogSettingsRequest),
            "SystemSharedMemoryStatus": (self.system_regions, kserve.SystemSharedMemoryStatusRequest),
            "CudaSharedMemoryStatus": (self.cuda_regions, kserve.CudaSharedMemoryStatusRequest),
            "RepositoryModelLoad": (
                changes.load if changes else _refuses(_NO_LOADING),
                kserve.RepositoryModelLoadRequest,
            ),
            "RepositoryModelUnload": (
                changes.unload if changes else _refuses(_NO_LOADING),
                kserve.RepositoryModelUnloadRequest,
            ),
            **{
                f"{kind}SharedMemory{what}": (
                    _refuses(_NO_SHARED_MEMORY),
                    getattr(kserve, f"{kind}SharedMemory{what}Request"),
                )
                for kind in ("System", "Cuda")
                for what in ("Register", "Unregister")
            },
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=lambda response: response.SerializeToString(),
            )
            for name, (method, request) in unary.items()
        }
        # No (de)serialisers: gRPC would answer bytes that do not parse with INTERNAL.
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._calls.unary)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._calls.stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def change(
        self,
        telemetry: TelemetryTable,
        instances: Sequence[config.ModelInstanceGroup],
        max_in_flight_per_stream: int,
    ) -> None:
        """Goes by these from now on; RPC streams that have begun keep what they may have in flight."""
        self._telemetry = telemetry
        self._instances = instances
        self._calls.max_in_flight = max_in_flight_per_stream

    def drain(self) -> None:
        """See `Calls.drain`."""
        self._calls.drain()

    async def server_live(
        self, _request: kserve.ServerLiveRequest, _context: Context
    ) -> kserve.ServerLiveResponse:
        """Whoever answers is alive."""
        return kserve.ServerLiveResponse(live=True)

    async def server_ready(
        self, _request: kserve.ServerReadyRequest, _context: Context
    ) -> kserve.ServerReadyResponse:
        """Whether new requests are taken."""
        return kserve.ServerReadyResponse(ready=self._ready())

    async def model_ready(
        self, request: kserve.ModelReadyRequest, _context: Context
    ) -> kserve.ModelReadyResponse:
        """Of a model that is not there: no."""
        try:
            self._models.route(request.name, request.version)
        except RequestError:
            return kserve.ModelReadyResponse(ready=False)
        return kserve.ModelReadyResponse(ready=self._ready())

    async def server_metadata(
        self, _request: kserve.ServerMetadataRequest, _context: Context
    ) -> kserve.ServerMetadataResponse:
        """Name, version, extensions."""
        extensions = (*EXTENSIONS, *(REPOSITORY_EXTENSIONS if self._changes else ()))
        return kserve.ServerMetadataResponse(name=NAME, version=self._version, extensions=extensions)

    async def model_metadata(
        self, request: kserve.ModelMetadataRequest, context: Context
    ) -> kserve.ModelMetadataResponse:
        """Of one model, or NOT_FOUND, or FAILED_PRECONDITION while it is not served."""
        try:
            return kserve_models.metadata(self._models.route(request.name, request.version))
        except RequestError as error:
            await abort(context, error)

    async def model_config(
        self, request: kserve.ModelConfigRequest, context: Context
    ) -> kserve.ModelConfigResponse:
        """Of one model, or NOT_FOUND, or FAILED_PRECONDITION while it is not served."""
        try:
            model = self._models.route(request.name, request.version)
        except RequestError as error:
            await abort(context, error)
        return kserve.ModelConfigResponse(
            config=kserve_models.model_config(model, self._desk.limits, self._instances)
        )

    async def model_statistics(
        self, request: kserve.ModelStatisticsRequest, context: Context
    ) -> kserve.ModelStatisticsResponse:
        """Of one model, or of all."""
        try:
            models = (
                [self._models.route(request.name, request.version)]
                if request.name
                else list(self._models.loaded())
            )
        except RequestError as error:
            await abort(context, error)
        books = self._desk.books
        return kserve.ModelStatisticsResponse(
            model_stats=[kserve_models.statistics(model, books.totals(model.index)) for model in models]
        )

    async def repository_index(
        self, request: kserve.RepositoryIndexRequest, context: Context
    ) -> kserve.RepositoryIndexResponse:
        """Every version of every model."""
        if request.repository_name:
            await _refuse(context, "there is one repository, repository_name must be empty")
        return kserve.RepositoryIndexResponse(
            models=kserve_models.index(self._models, only_ready=request.ready)
        )

    async def trace_setting(
        self, request: kserve.TraceSettingRequest, context: Context
    ) -> kserve.TraceSettingResponse:
        """Whether anything is traced, and how often, by Triton's names."""
        await self._check_name(request.model_name, context)
        if request.settings:
            await _refuse(context, _NO_TRACE_CHANGES)
        return kserve.TraceSettingResponse(
            settings={
                name: kserve.TraceSettingResponse.SettingValue(value=[value])
                for name, value in kserve_models.trace_settings(self._telemetry).items()
            }
        )

    async def log_settings(
        self, request: kserve.LogSettingsRequest, context: Context
    ) -> kserve.LogSettingsResponse:
        """By Triton's names, as the server was started."""
        if request.settings:
            await _refuse(context, _NO_LOG_CHANGES)
        level = self._telemetry.log_level
        value = kserve.LogSettingsResponse.SettingValue
        return kserve.LogSettingsResponse(
            settings={
                "log_file": value(string_param=""),
                "log_info": value(bool_param=level in ("debug", "info")),
                "log_warning": value(bool_param=level != "error"),
                "log_error": value(bool_param=True),
                "log_verbose_level": value(uint32_param=int(level == "debug")),
                "log_format": value(string_param=self._telemetry.log_format),
            }
        )

    async def system_regions(
        self, request: kserve.SystemSharedMemoryStatusRequest, context: Context
    ) -> kserve.SystemSharedMemoryStatusResponse:
        """There are none."""
        await _check_region(request.name, context)
        return kserve.SystemSharedMemoryStatusResponse()

    async def cuda_regions(
        self, request: kserve.CudaSharedMemoryStatusRequest, context: Context
    ) -> kserve.CudaSharedMemoryStatusResponse:
        """There are none."""
        await _check_region(request.name, context)
        return kserve.CudaSharedMemoryStatusResponse()

    def _ready(self) -> bool:
        admission = self._desk.admission
        return self._models.ready and not admission.draining and not admission.engine_lost

    async def _check_name(self, name: str, context: Context) -> None:
        if name:
            try:
                self._models.find(name)
            except UnknownModel as error:
                await abort(context, error)


async def _check_region(name: str, context: Context) -> None:
    if name:
        await _refuse(context, _NO_SHARED_MEMORY)


def _refuses(why: str) -> Method:
    async def method(_request: object, context: Context) -> NoReturn:
        await _refuse(context, why)

    return method


async def _refuse(context: Context, why: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
    raise AssertionError("unreachable: abort raises")
