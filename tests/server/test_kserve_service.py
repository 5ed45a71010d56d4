"""How GRPCInferenceService describes models and settings, and that its streams are those of PredictStream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from scheduler.errors import UnknownModel
from scheduler.partition import Outcome
from scheduler.priority import DEFAULT_LIMITS
from server.administration import CannotLoad
from server.rpc.kserve import EXTENSIONS, SERVICE, KserveService
from server.rpc.kserve_models import instance_groups
from server.rpc.kserve_repository import Kind, RepositoryChanges
from server.settings import Settings, TelemetryTable
from tests.server.kserve_world import Parameter, raw_request
from tests.server.test_inference import Calls
from tests.server.world import MAX_ROWS, SIGNATURE, FrontEnd, served, table
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.kserve import model_config_pb2 as config

DEADLINE_S = 20.0
MakeFrontEnd = Callable[..., FrontEnd]
Code = grpc.StatusCode


class Served:
    """The service of a front end on a socket."""

    def __init__(self, front_end: FrontEnd, channel: grpc.aio.Channel, service: KserveService) -> None:
        self.front_end = front_end
        self.service = service
        self._channel = channel

    async def call(self, method: str, **fields: Any) -> Any:
        """One unary call, by names."""
        request = getattr(kserve, f"{method}Request")
        response = getattr(kserve, f"{method}Response")
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
        )
        return await call(request(**fields), timeout=DEADLINE_S)

    async def refused(self, method: str, **fields: Any) -> tuple[Code, str]:
        """The status and text of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.call(method, **fields)
        return failed.value.code(), failed.value.details() or ""

    def stream(self) -> Any:
        """A ModelStreamInfer RPC."""
        call: Any = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            kserve.ModelInferRequest.SerializeToString,
            kserve.ModelStreamInferResponse.FromString,
        )
        return call(timeout=DEADLINE_S)


@pytest.fixture
def front_end(make_front_end: MakeFrontEnd) -> FrontEnd:
    """Serves `pair` in version 3 of three, and another model."""
    models = table(
        served(versions=(1, 2, 3)), served(replace(SIGNATURE, name="another"), index=1), default="pair"
    )
    return make_front_end(model_count=2, models=models)


@contextlib.asynccontextmanager
async def serving(front_end: FrontEnd, changes: RepositoryChanges | None = None) -> AsyncIterator[Served]:
    """With four in flight on a stream."""
    settings = Settings.model_validate({"executor": {"device": "cpu,cuda:1", "instances": 2}})
    service = KserveService(
        front_end.desk,
        front_end.models,
        TelemetryTable(log_level="warning"),
        instance_groups(settings, 2),
        4,
        changes,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(front_end, channel, service)
    await server.stop(None)


@pytest.fixture
async def it(front_end: FrontEnd) -> AsyncIterator[Served]:
    """Without loading and unloading."""
    async with serving(front_end) as served:
        yield served


@pytest.fixture
def pushes(front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Of requests to the engine."""
    return Calls(monkeypatch, front_end.partition, "push")


# -- what clients ask ---------------------------------------------------------------------------


async def test_every_method_of_the_proto_is_there(it: Served) -> None:
    """None is answered by gRPC itself."""
    methods = kserve.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert len(methods) == 20
    served = it.service.handler()
    found = [name for name in methods if served.service(_details(f"/{SERVICE}/{name}"))]
    assert found == list(methods)
    assert served.service(_details(f"/{SERVICE}/Other")) is None


async def test_live_and_ready(it: Served) -> None:
    """Ready is what a request would find; a model that is not there is not ready, and that is no error."""
    assert (await it.call("ServerLive")).live
    assert (await it.call("ServerReady")).ready
    for name, version, ready in [
        ("pair", "", True),
        ("pair", "3", True),
        ("pair", "1", False),
        ("pair", "9", False),
        ("none", "", False),
    ]:
        assert (await it.call("ModelReady", name=name, version=version)).ready is ready
    for of, flag, value in [
        (it.front_end.admission, "draining", True),
        (it.front_end.admission, "engine_lost", True),
        (it.front_end.models, "ready", False),
    ]:
        was = getattr(of, flag)
        setattr(of, flag, value)
        assert (await it.call("ServerLive")).live
        assert not (await it.call("ServerReady")).ready
        assert not (await it.call("ModelReady", name="pair")).ready
        setattr(of, flag, was)


async def test_server_metadata(it: Served) -> None:
    """Only extensions that are served."""
    metadata = await it.call("ServerMetadata")
    assert (metadata.name, tuple(metadata.extensions)) == ("tickring", EXTENSIONS)
    assert metadata.version


async def test_model_metadata(it: Served) -> None:
    """The number of rows is open, and first; a scalar of each row is a vector."""
    metadata = await it.call("ModelMetadata", name="pair")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("pair", ["3"], "pytorch_libtorch")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 2, 3]),
        ("k", "INT64", [-1]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("y", "FP32", [-1, 2]),
        ("z", "FP64", [-1]),
        ("ok", "BOOL", [-1, 1]),
    ]


async def test_model_config(it: Served) -> None:
    """Rows, types, priorities and devices as they are."""
    model = (await it.call("ModelConfig", name="pair")).config
    assert (model.name, model.backend, model.max_batch_size) == ("pair", "pytorch", MAX_ROWS)
    assert list(model.version_policy.specific.versions) == [3]
    assert [(t.name, config.DataType.Name(t.data_type), list(t.dims)) for t in model.input] == [
        ("x", "TYPE_FP32", [2, 3]),
        ("k", "TYPE_INT64", []),
    ]
    assert [config.DataType.Name(t.data_type) for t in model.output] == [
        "TYPE_FP32",
        "TYPE_FP64",
        "TYPE_BOOL",
    ]
    batching = model.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (5, 3)
    for level, limits in enumerate(DEFAULT_LIMITS, start=1):
        policy = batching.priority_queue_policy[level]
        assert policy.default_timeout_microseconds * 1000 == limits.default_timeout_ns
        assert policy.max_queue_size == limits.queue_limit
    cpu, gpu = model.instance_group
    assert (cpu.kind, cpu.count, list(cpu.gpus)) == (config.ModelInstanceGroup.KIND_CPU, 2, [])
    assert (gpu.kind, gpu.count, list(gpu.gpus)) == (config.ModelInstanceGroup.KIND_GPU, 2, [1])


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_unknown_and_unloaded_models(it: Served, method: str) -> None:
    """The same statuses as for a prediction."""
    assert (await it.refused(method, name="none"))[0] is Code.NOT_FOUND
    assert (await it.refused(method, name="pair", version="9"))[0] is Code.NOT_FOUND
    assert (await it.refused(method, name="pair", version="1"))[0] is Code.FAILED_PRECONDITION


async def test_repository_index(it: Served) -> None:
    """All versions, or those that are served; while models load, none is."""
    everything = [
        ("another", "3", "READY"),
        ("pair", "1", "UNAVAILABLE"),
        ("pair", "2", "UNAVAILABLE"),
        ("pair", "3", "READY"),
    ]
    models = (await it.call("RepositoryIndex")).models
    assert [(m.name, m.version, m.state) for m in models] == everything
    assert models[1].reason == "loaded is 3"
    models = (await it.call("RepositoryIndex", ready=True)).models
    assert [(m.name, m.version) for m in models] == [("another", "3"), ("pair", "3")]
    it.front_end.models.ready = False
    assert {m.state for m in (await it.call("RepositoryIndex")).models} == {"LOADING", "UNAVAILABLE"}
    assert (await it.refused("RepositoryIndex", repository_name="x"))[0] is Code.UNIMPLEMENTED


async def test_statistics_follow_the_requests(it: Served, pushes: Calls) -> None:
    """Of each model, in the order of the table; one by name."""
    infer = asyncio.create_task(_infer(it, raw_request(2)))
    await pushes.wait(1)
    it.front_end.complete(Outcome.RESULT)
    await infer
    pair, another = (await it.call("ModelStatistics")).model_stats
    assert (pair.name, pair.version, another.name) == ("pair", "3", "another")
    assert (pair.inference_count, pair.execution_count, another.inference_count) == (2, 1, 0)
    stats = pair.inference_stats
    assert [stats.success.count, stats.queue.count, stats.compute_infer.count, stats.fail.count] == [
        1,
        1,
        1,
        0,
    ]
    assert stats.success.ns >= stats.queue.ns + stats.compute_infer.ns > 0
    assert stats.compute_infer.ns == 20
    assert list((await it.call("ModelStatistics", name="pair")).model_stats) == [pair]


async def test_settings_can_be_read(it: Served) -> None:
    """By Triton's names; changing them is refused."""
    traces = (await it.call("TraceSetting", model_name="pair")).settings
    assert {name: list(value.value) for name, value in traces.items()} == {"trace_level": ["OFF"]}
    logs = (await it.call("LogSettings")).settings
    assert not logs["log_info"].bool_param
    assert logs["log_warning"].bool_param
    assert (logs["log_verbose_level"].uint32_param, logs["log_format"].string_param) == (0, "text")
    value = kserve.TraceSettingRequest.SettingValue(value=["TIMESTAMPS"])
    code, text = await it.refused("TraceSetting", settings={"trace_level": value})
    assert (code, "not changed" in text) == (Code.UNIMPLEMENTED, True)
    verbose = kserve.LogSettingsRequest.SettingValue(uint32_param=1)
    assert (await it.refused("LogSettings", settings={"log_verbose_level": verbose}))[0] is Code.UNIMPLEMENTED
    assert (await it.refused("TraceSetting", model_name="none"))[0] is Code.NOT_FOUND


async def test_what_is_not_served_says_so(it: Served) -> None:
    """Shared memory has no regions and takes none; models are not loaded where nobody can be asked to."""
    for kind in ("System", "Cuda"):
        assert not (await it.call(f"{kind}SharedMemoryStatus")).regions
        for method in ("Register", "Unregister"):
            code, text = await it.refused(f"{kind}SharedMemory{method}", name="r")
            assert (code, "raw_input_contents" in text) == (Code.UNIMPLEMENTED, True)
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        code, text = await it.refused(method, model_name="pair")
        assert (code, "restart" in text) == (Code.UNIMPLEMENTED, True)


# -- loading and unloading ----------------------------------------------------------------------


class Asked:
    """Who changes models, in the front end's eyes: keeps what it is asked for, and may refuse."""

    def __init__(self) -> None:
        self.calls: list[tuple[Kind, str]] = []
        self.authors: list[str] = []

    async def change(self, kind: Kind, name: str, author: str) -> None:
        self.calls.append((kind, name))
        self.authors.append(author)
        if name == "broken":
            raise CannotLoad("broken: its manifest has no inputs")
        if name == "none":
            raise UnknownModel("no model 'none'")


def repository_changes(asked: Asked, host: str = "127.0.0.1", **tables: Any) -> RepositoryChanges:
    """As of a server that listens there."""
    return RepositoryChanges(asked.change, Settings.model_validate({"server": {"host": host}, **tables}))


async def test_models_are_loaded_and_unloaded(front_end: FrontEnd) -> None:
    """Whoever changes them is asked, with what Triton's client sends; then it is an extension as well."""
    asked = Asked()
    yes = kserve.ModelRepositoryParameter(bool_param=True)
    async with serving(front_end, repository_changes(asked)) as it:
        assert await it.call("RepositoryModelLoad", model_name="pair") == kserve.RepositoryModelLoadResponse()
        answer = await it.call(
            "RepositoryModelUnload", model_name="pair", parameters={"unload_dependents": yes}
        )
        assert answer == kserve.RepositoryModelUnloadResponse()
        extensions = (await it.call("ServerMetadata")).extensions
    assert asked.calls == [("load", "pair"), ("unload", "pair")]
    assert all(author.startswith("ipv4:127.0.0.1:") for author in asked.authors)
    assert extensions == [*EXTENSIONS, "model_repository", "model_repository(unload_dependents)"]


async def test_who_asks_is_passed_on(front_end: FrontEnd) -> None:
    """As the port knows its callers."""
    asked = Asked()
    changes = RepositoryChanges(asked.change, Settings(), lambda _: "operator")
    async with serving(front_end, changes) as it:
        await it.call("RepositoryModelLoad", model_name="pair")
    assert asked.authors == ["operator"]


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"model_name": "none"}, Code.NOT_FOUND, "no model 'none'"),
        ({"model_name": "broken"}, Code.FAILED_PRECONDITION, "broken: its manifest has no inputs"),
    ],
)
async def test_change_that_fails_has_its_status(
    front_end: FrontEnd, method: str, fields: dict[str, Any], code: Code, said: str
) -> None:
    """As whoever was asked said it."""
    async with serving(front_end, repository_changes(Asked())) as it:
        assert await it.refused(method, **fields) == (code, said)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({}, Code.INVALID_ARGUMENT, "model_name: is empty"),
        ({"model_name": "pair", "repository_name": "x"}, Code.UNIMPLEMENTED, "must be empty"),
        ({"parameters": ["config"]}, Code.INVALID_ARGUMENT, "parameters[config]"),
        ({"parameters": ["other", "file:1/model.pt"]}, Code.INVALID_ARGUMENT, "parameters[file:1/model.pt]"),
    ],
)
async def test_change_that_nobody_is_asked_for(
    front_end: FrontEnd, method: str, fields: dict[str, Any], code: Code, said: str
) -> None:
    """What would be served otherwise than the repository says is named; nothing happens."""
    asked = Asked()
    if "parameters" in fields:
        value = kserve.ModelRepositoryParameter(string_param="{}")
        fields = {"model_name": "pair", "parameters": dict.fromkeys(fields["parameters"], value)}
    async with serving(front_end, repository_changes(asked)) as it:
        found, text = await it.refused(method, **fields)
    assert (found, asked.calls) == (code, [])
    assert said in text


@pytest.mark.parametrize(
    ("host", "tables", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        ("10.0.0.5", {"tls": {"cert": "a", "key": "b", "client_ca": "c"}}, False),
        ("10.0.0.5", {"auth": {"tokens_file": "tokens.toml"}}, True),
    ],
)
async def test_strangers_change_no_models(
    front_end: FrontEnd, host: str, tables: dict[str, Any], allowed: bool
) -> None:
    """Without tokens only a server that nobody else reaches takes these calls, and says what is missing."""
    asked = Asked()
    async with serving(front_end, repository_changes(asked, host, **tables)) as it:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            if allowed:
                await it.call(method, model_name="pair")
            else:
                code, text = await it.refused(method, model_name="pair")
                assert (code, "auth.tokens_file" in text) == (Code.PERMISSION_DENIED, True)
    assert bool(asked.calls) is allowed


# -- streams ------------------------------------------------------------------------------------


async def test_bad_message_fails_alone(it: Served, pushes: Calls) -> None:
    """Its error carries its id and status, and the stream goes on."""
    call = it.stream()
    await call.write(raw_request(id="bad", parameters={"priority": Parameter(int64_param=9)}))
    bad = await call.read()
    assert bad.error_message.startswith("parameters.priority: '9' is no priority")
    assert bad.infer_response.id == "bad"
    assert bad.infer_response.parameters["tickring_status"].string_param == "INVALID_ARGUMENT"
    await call.write(raw_request(id="good"))
    await pushes.wait(1)
    it.front_end.complete(Outcome.RESULT)
    good = await call.read()
    assert (good.error_message, good.infer_response.id) == ("", "good")
    assert good.infer_response.parameters["triton_final_response"].bool_param
    await call.done_writing()
    assert await call.code() is Code.OK


async def test_stream_reads_no_further_than_it_may(it: Served, pushes: Calls) -> None:
    """Four in flight of six sent; the others are read as answers are written."""
    call = it.stream()
    for number in range(6):
        await call.write(raw_request(id=str(number)))
    await call.done_writing()
    await pushes.wait(3)
    for number in range(6):
        if number < 3:
            await pushes.wait(1)
        assert it.front_end.partition.books()["admitted"] == min(6, number + 4)
        it.front_end.complete(Outcome.RESULT, count=1)
        assert (await call.read()).infer_response.id == str(number)
    assert await call.code() is Code.OK


async def test_drain_ends_streams(it: Served, pushes: Calls) -> None:
    """What is in flight is answered first."""
    call = it.stream()
    await call.write(raw_request(id="a"))
    await pushes.wait(1)
    it.service.drain()
    it.front_end.complete(Outcome.RESULT)
    assert (await call.read()).infer_response.id == "a"
    assert await call.code() is Code.UNAVAILABLE


async def _infer(it: Served, request: kserve.ModelInferRequest) -> Any:
    fields = {name.name: value for name, value in request.ListFields()}
    return await it.call("ModelInfer", **fields)


def _details(method: str) -> Any:
    """As gRPC asks for a handler."""
    return SimpleNamespace(method=method, invocation_metadata=())
