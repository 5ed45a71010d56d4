"""Names that others look for: metrics and their labels, spans and their attributes. Nowhere else."""

from collections.abc import Mapping

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

# Every metric with its labels; `le` of histograms aside.
METRIC_LABELS: Mapping[str, tuple[str, ...]] = {
    "tickring_requests_total": ("model", "priority", "code"),
    "tickring_request_seconds": ("model", "priority"),
    "tickring_queue_wait_seconds": ("model", "priority"),
    "tickring_compute_seconds": ("model", "bucket"),
    "tickring_batch_size": ("model",),
    "tickring_batches_total": ("model",),
    "tickring_target_batch_size": ("model",),
    "tickring_queue_depth": ("model", "priority"),
    "tickring_in_flight_batches": ("device",),
    "tickring_shed_total": ("model", "priority", "reason"),
    "tickring_expired_total": (),
    "tickring_cancelled_total": (),
    "tickring_gpu_utilization_ratio": ("gpu",),
    "tickring_gpu_memory_used_bytes": ("gpu",),
    "tickring_cpu_utilization_ratio": (),
    "tickring_memory_utilization_ratio": (),
    "tickring_process_up": ("process",),
    "tickring_process_restarts_total": ("process",),
    "tickring_model_ready": ("model", "version"),
    "tickring_slots_free": ("frontend",),
    TRACE_SPANS_EXPORTED: (),
    TRACE_SPANS_DROPPED: (),
    TRACE_RECORDS_DROPPED: ("reason",),
}
