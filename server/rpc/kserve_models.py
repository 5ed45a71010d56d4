"""Models as Triton's form of KServe's protocol describes them: metadata, configuration, statistics, index."""

from collections.abc import Iterator, Sequence

from scheduler.priority import CLASS_COUNT, ClassLimits
from scheduler.signature import TensorSpec
from server.model_books import ModelTotals
from server.models import ModelTable, ServedModel
from server.settings import Settings, TelemetryTable
from server.sizing import engine_sizes
from tickring.kserve import grpc_service_pb2 as kserve
from tickring.kserve import model_config_pb2 as config

READY = "READY"
# As Triton calls the same; others keep our own name.
_PLATFORMS = {"torchscript": "pytorch_libtorch"}
_BACKEND = "pytorch"


def trace_settings(telemetry: TelemetryTable) -> dict[str, str]:
    """What is traced, as Triton says it."""
    if telemetry.otlp_endpoint is None:
        return {"trace_level": "OFF"}
    ratio = telemetry.trace_sample_ratio
    rate = {"trace_rate": str(round(1 / ratio))} if ratio else {}
    return {"trace_level": "TIMESTAMPS", "trace_mode": "opentelemetry", **rate}


def platform(model: ServedModel) -> str:
    """Framework and format of a model's file."""
    return _PLATFORMS.get(model.format, f"pytorch_{model.format}")


def metadata(model: ServedModel) -> kserve.ModelMetadataResponse:
    """Inputs and outputs; the first dimension of all is the number of rows."""
    signature = model.signature
    return kserve.ModelMetadataResponse(
        name=signature.name,
        versions=[str(version) for version in model.loaded],
        platform=platform(model),
        inputs=[_tensor_metadata(spec) for spec in signature.inputs],
        outputs=[_tensor_metadata(spec) for spec in signature.outputs],
    )


def model_config(
    model: ServedModel, limits: Sequence[ClassLimits], instances: Sequence[config.ModelInstanceGroup]
) -> config.ModelConfig:
    """The parts of a model's configuration that Triton has words for.

    Args:
        limits: those in use, by class index.
        instances: see `instance_groups`.
    """
    signature = model.signature
    default = model.default_class
    policies = {
        index + 1: config.ModelQueuePolicy(
            default_timeout_microseconds=limit.default_timeout_ns // 1000,
            allow_timeout_override=True,
            max_queue_size=min(limit.queue_limit, model.queue_limit or limit.queue_limit),
        )
        for index, limit in enumerate(limits)
    }
    return config.ModelConfig(
        name=signature.name,
        platform=platform(model),
        backend=_BACKEND,
        version_policy=config.ModelVersionPolicy(
            specific=config.ModelVersionPolicy.Specific(versions=model.loaded)
        ),
        max_batch_size=model.max_rows,
        input=[
            config.ModelInput(name=spec.name, data_type=_data_type(spec), dims=spec.shape)
            for spec in signature.inputs
        ],
        output=[
            config.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=spec.shape)
            for spec in signature.outputs
        ],
        instance_group=instances,
        dynamic_batching=config.ModelDynamicBatching(
            max_queue_delay_microseconds=limits[default.index].max_wait_ns // 1000,
            priority_levels=CLASS_COUNT,
            default_priority_level=default.value,
            default_queue_policy=policies[default.value],
            priority_queue_policy=policies,
        ),
    )


def instance_groups(settings: Settings, engines: int) -> list[config.ModelInstanceGroup]:
    """Where every model runs: on each engine. Of `auto` a front end does not know what was found."""
    setting = settings.executor.device
    if setting == "auto":
        return [config.ModelInstanceGroup(name="auto", kind="KIND_AUTO", count=1)]
    devices = [f"cuda:{index}" for index in range(engines)] if setting == "cuda" else setting.split(",")
    return [_instance_group(settings, device, engine) for engine, device in enumerate(devices)]


def _instance_group(settings: Settings, device: str, engine: int) -> config.ModelInstanceGroup:
    sizes = engine_sizes(settings, device)
    gpu = device.removeprefix("cuda:")
    on_cpu = device == "cpu"
    return config.ModelInstanceGroup(
        name=f"engine-{engine}",
        kind="KIND_CPU" if on_cpu else "KIND_GPU",
        count=sizes.instances + sizes.reserved,
        gpus=[] if on_cpu else [int(gpu)],
    )


def statistics(model: ServedModel, totals: ModelTotals) -> kserve.ModelStatistics:
    """What the whole service has counted. What is no step of its own here took no time."""
    answered = totals.success

    def of_answered(ns: int) -> kserve.StatisticDuration:
        return kserve.StatisticDuration(count=answered, ns=ns)

    return kserve.ModelStatistics(
        name=model.signature.name,
        version=str(model.signature.version),
        last_inference=totals.last_ms,
        inference_count=totals.rows,
        execution_count=totals.executions,
        inference_stats=kserve.InferStatistics(
            success=of_answered(totals.success_ns),
            fail=kserve.StatisticDuration(count=totals.fail, ns=totals.fail_ns),
            queue=of_answered(totals.queue_ns),
            compute_input=of_answered(0),
            compute_infer=of_answered(totals.compute_ns),
            compute_output=of_answered(totals.delivery_ns),
        ),
    )


def index(models: ModelTable, *, only_ready: bool) -> Iterator[kserve.RepositoryIndexResponse.ModelIndex]:
    """Every version in the repository, by name and number."""
    for model in sorted(models, key=lambda model: model.signature.name):
        for version in sorted(model.sha256):
            state, reason = _state(models, model, version)
            if state == READY or not only_ready:
                yield kserve.RepositoryIndexResponse.ModelIndex(
                    name=model.signature.name, version=str(version), state=state, reason=reason
                )


def _state(models: ModelTable, model: ServedModel, version: int) -> tuple[str, str]:
    if version not in model.loaded:
        return "UNAVAILABLE", f"loaded is {', '.join(map(str, model.loaded)) or 'no version'}"
    return (READY, "") if models.ready else ("LOADING", "")


def _tensor_metadata(spec: TensorSpec) -> kserve.ModelMetadataResponse.TensorMetadata:
    return kserve.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.data_type.name, shape=[-1, *spec.shape]
    )


def _data_type(spec: TensorSpec) -> str:
    return f"TYPE_{spec.data_type.name}"
