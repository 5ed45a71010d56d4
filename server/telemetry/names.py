"""Names that others look for: metrics and their labels, spans and their attributes. Nowhere else."""

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
