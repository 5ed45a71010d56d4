"""Names that others look for: metrics and their labels, spans and their attributes. Nowhere else."""

from dataclasses import dataclass
from enum import Enum, auto

# -- spans --------------------------------------------------------------------------------------

SPAN_QUEUE_WAIT = "queue.wait"
SPAN_BATCH_COMPUTE = "batch.compute"
SPAN_BATCH = "batch"

# By OpenTelemetry's semantic conventions; those of RPCs are a release candidate and may change yet.
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"
HOST_NAME = "host.name"
RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
ERROR_TYPE = "error.type"

# Our own attributes.
MODEL_NAME = "tickring.model.name"
MODEL_VERSION = "tickring.model.version"
PRIORITY = "tickring.priority"
REQUEST_ID = "tickring.request.id"
REQUEST_ROWS = "tickring.request.rows"
QUEUE_WAIT_NS = "tickring.queue.wait_ns"
BATCH_NUMBER = "tickring.batch.number"
BATCH_SIZE = "tickring.batch.size"
BATCH_BUCKET = "tickring.batch.bucket"
BATCH_PREPARE_NS = "tickring.batch.prepare_ns"
DEVICE = "tickring.device"
PROCESS = "tickring.process"
CACHE_HIT = "tickring.cache.hit"
OUTCOME = "tickring.outcome"
REASON = "tickring.reason"
TRACED_FOR = "tickring.traced_for"

# -- metrics of tracing itself --------------------------------------------------------------------

TRACE_SPANS_EXPORTED = "tickring_trace_spans_exported_total"
TRACE_SPANS_DROPPED = "tickring_trace_spans_dropped_total"
TRACE_RECORDS_DROPPED = "tickring_trace_records_dropped_total"
# Reasons of the last one: over the cap of a second; no room in the socket, or in the telemetry process.
DROPPED_BY_CAP = "cap"
DROPPED_AT_SOCKET = "socket"
DROPPED_FROM_QUEUE = "queue"
DROP_REASONS = (DROPPED_BY_CAP, DROPPED_AT_SOCKET, DROPPED_FROM_QUEUE)

# -- metrics --------------------------------------------------------------------------------------


class Kind(Enum):
    """How a metric is read."""

    COUNTER = auto()
    GAUGE = auto()
    HISTOGRAM = auto()


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as `/metrics` has it.

    Attributes:
        labels: their names, in the order of their values.
        help: what it means, one line.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


# The value of `model` and `bucket` for what is counted together since there were too many. No model has
# parentheses in its name.
OTHER = "(other)"

# Why a request was refused to protect the rest: values of the label `reason`, in the order in which the arena
# counts them. Where ErrorInfo tells the same, in its words.
SHED_QUEUE = "QUEUE_FULL"
SHED_SLOTS = "SLOTS_FULL"
SHED_DEADLINE = "DEADLINE_UNREACHABLE"
SHED_ENGINE = "ENGINE_RESTARTING"
SHED_DRAINING = "DRAINING"
SHED_CANCELS = "TOO_MANY_CANCELS"
SHED_FAILING_INPUT = "FAILING_INPUT"
SHED_REASONS = (
    SHED_QUEUE,
    SHED_SLOTS,
    SHED_DEADLINE,
    SHED_ENGINE,
    SHED_DRAINING,
    SHED_CANCELS,
    SHED_FAILING_INPUT,
)

CACHE_TIERS = ("memory", "redis")

REQUESTS = Metric(
    "tickring_requests_total",
    Kind.COUNTER,
    ("model", "priority", "code"),
    "Requests that ended, refused ones among them, by gRPC code.",
)
REQUEST_SECONDS = Metric(
    "tickring_request_seconds",
    Kind.HISTOGRAM,
    ("model", "priority"),
    "From arrival to answer, of requests that were let in and not given up.",
)
QUEUE_WAIT_SECONDS = Metric(
    "tickring_queue_wait_seconds",
    Kind.HISTOGRAM,
    ("model", "priority"),
    "From arrival to dispatch, or to expiry, of the row that waited longest.",
)
COMPUTE_SECONDS = Metric(
    "tickring_compute_seconds",
    Kind.HISTOGRAM,
    ("model", "bucket"),
    "Of batches, from dispatch to outputs ready, by the size they were padded to.",
)
BATCH_SIZES = Metric("tickring_batch_size", Kind.HISTOGRAM, ("model",), "Rows of a batch, without padding.")
BATCHES = Metric("tickring_batches_total", Kind.COUNTER, ("model",), "Batches that ran.")
PADDING = Metric(
    "tickring_padding_rows_total", Kind.COUNTER, ("model",), "Rows that batches were filled up with."
)
TARGET_BATCH_SIZE = Metric(
    "tickring_target_batch_size",
    Kind.GAUGE,
    ("model",),
    "Rows that are worth waiting for, and taken at most.",
)
QUEUE_DEPTH = Metric(
    "tickring_queue_depth", Kind.GAUGE, ("model", "priority"), "Rows that wait, in lanes and at the entrance."
)
IN_FLIGHT_BATCHES = Metric(
    "tickring_in_flight_batches", Kind.GAUGE, ("device",), "Batches dispatched and not completed."
)
SHED = Metric(
    "tickring_shed_total",
    Kind.COUNTER,
    ("model", "priority", "reason"),
    "Requests refused at the door to protect the rest, by reason.",
)
EXPIRED = Metric("tickring_expired_total", Kind.COUNTER, (), "Rows whose deadline passed while they waited.")
CANCELLED = Metric("tickring_cancelled_total", Kind.COUNTER, (), "Rows whose caller left while they waited.")
CACHE_HITS = Metric("tickring_cache_hits_total", Kind.COUNTER, ("tier",), "Answers found in the cache.")
CACHE_MISSES = Metric("tickring_cache_misses_total", Kind.COUNTER, (), "Answers looked for and not found.")
PROCESS_UP = Metric("tickring_process_up", Kind.GAUGE, ("process",), "1 while the process runs.")
PROCESS_RESTARTS = Metric(
    "tickring_process_restarts_total", Kind.COUNTER, ("process",), "Times that a process was started again."
)
MODEL_READY = Metric(
    "tickring_model_ready", Kind.GAUGE, ("model", "version"), "1 while an engine serves a loaded version."
)
SLOTS_FREE = Metric("tickring_slots_free", Kind.GAUGE, ("frontend",), "Slots that new requests can have.")

# What is read once a second: of the host, its processes, its GPUs, and of tracing.
CPU_UTILIZATION = Metric(
    "tickring_cpu_utilization_ratio", Kind.GAUGE, (), "Part of the host's CPU time that is used by anybody."
)
MEMORY_UTILIZATION = Metric(
    "tickring_memory_utilization_ratio", Kind.GAUGE, (), "Part of the host's memory that is used by anybody."
)
PROCESS_RESIDENT = Metric(
    "tickring_process_resident_bytes",
    Kind.GAUGE,
    ("process",),
    "Memory of a process, the part of the arena that it has touched included.",
)
PROCESS_CPU = Metric(
    "tickring_process_cpu_seconds_total",
    Kind.COUNTER,
    ("process",),
    "CPU time, of all processes in its place.",
)
GPU_UTILIZATION = Metric(
    "tickring_gpu_utilization_ratio", Kind.GAUGE, ("gpu",), "Part of the time in which any kernel ran."
)
GPU_MEMORY_USED = Metric(
    "tickring_gpu_memory_used_bytes", Kind.GAUGE, ("gpu",), "Memory of the GPU that is used by anybody."
)
GPU_MEMORY_TOTAL = Metric("tickring_gpu_memory_total_bytes", Kind.GAUGE, ("gpu",), "Memory of the GPU.")
GPU_TEMPERATURE = Metric("tickring_gpu_temperature_celsius", Kind.GAUGE, ("gpu",), "Temperature of the GPU.")
GPU_SLOWDOWN = Metric(
    "tickring_gpu_slowdown", Kind.GAUGE, ("gpu",), "1 while heat or power supply slow the GPU down."
)
GPU_ECC = Metric(
    "tickring_gpu_ecc_uncorrected_total",
    Kind.COUNTER,
    ("gpu",),
    "Memory errors that could not be corrected, since the driver was loaded.",
)
GPU_XID = Metric("tickring_gpu_xid_total", Kind.COUNTER, ("gpu",), "Errors that the driver reported.")
READINGS = (
    CPU_UTILIZATION,
    MEMORY_UTILIZATION,
    PROCESS_RESIDENT,
    PROCESS_CPU,
    GPU_UTILIZATION,
    GPU_MEMORY_USED,
    GPU_MEMORY_TOTAL,
    GPU_TEMPERATURE,
    GPU_SLOWDOWN,
    GPU_ECC,
    GPU_XID,
    Metric(TRACE_SPANS_EXPORTED, Kind.COUNTER, (), "Spans that a collector has taken."),
    Metric(TRACE_SPANS_DROPPED, Kind.COUNTER, (), "Spans that no collector has taken."),
    Metric(
        TRACE_RECORDS_DROPPED,
        Kind.COUNTER,
        ("reason",),
        "Requests to be traced that became no spans, by reason.",
    ),
)
METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    QUEUE_WAIT_SECONDS,
    COMPUTE_SECONDS,
    BATCH_SIZES,
    BATCHES,
    PADDING,
    TARGET_BATCH_SIZE,
    QUEUE_DEPTH,
    IN_FLIGHT_BATCHES,
    SHED,
    EXPIRED,
    CANCELLED,
    CACHE_HITS,
    CACHE_MISSES,
    PROCESS_UP,
    PROCESS_RESTARTS,
    MODEL_READY,
    SLOTS_FREE,
    *READINGS,
)
