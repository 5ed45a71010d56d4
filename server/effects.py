"""What it takes for a change of a setting to come into effect."""

from enum import Enum

from server.settings import Settings


class Effect(Enum):
    """From the least to the most."""

    LIVE = "running processes take it up"
    ENGINES = "new engine processes are prepared and take over without interruption"
    RESTART = "the service has to be started again"


# The settings by table. What is not LIVE has gone into processes, sockets or the sizes of shared memory by
# the time the service is ready.
_TABLE = {
    Effect.LIVE: {
        "server": "max_in_flight_per_stream max_cancels_per_s drain_grace_s",
        "models": "default_model poll_s",
        "scheduler": "adaptive latency_budget_ms bulk_quantum_ms early_refusal default_class",
        "executor": "gpu_utilization_high gpu_utilization_low memory_utilization_high host_load_high "
        "stall_timeout_s prepare_timeout_s",
        "calendar": "exchange lead_s",
        "telemetry": "trace_sample_ratio log_level",
        "slo": "p50_ms p95_ms p99_ms max_ms min_rps target_rps max_error_ratio",
    },
    Effect.ENGINES: {
        "scheduler": "max_batch_size buckets reserved_instances spin_us",
        "executor": "instances precision cpu_backend cuda_graphs cuda_spin memory_fraction cpu_threads "
        "cpu_affinity",
    },
    Effect.RESTART: {
        "server": "host grpc_port http_port admin_port frontends max_message_bytes max_concurrent_rpcs "
        "max_metadata_bytes max_streams_per_connection max_connection_idle_s max_connection_age_s "
        "handshake_timeout_s min_ping_interval_s keepalive_s",
        "tls": "cert key client_ca",
        "auth": "tokens_file allow_clear_text",
        "models": "repository max_loaded max_row_bytes",
        "scheduler": "slots_per_frontend",
        "executor": "device",
        "cache": "enabled entries ttl_s redis_url",
        "telemetry": "otlp_endpoint log_format",
    },
}
_EFFECTS = {
    f"{table}.{name}": effect
    for effect, tables in _TABLE.items()
    for table, names in tables.items()
    for name in names.split()
} | {path: Effect.LIVE for path in Settings().leaves() if path.startswith("scheduler.classes.")}


def effect_of(path: str) -> Effect:
    """Of a change of the setting at this dotted path; KeyError where there is none."""
    return _EFFECTS[path]


def changed(old: Settings, new: Settings) -> dict[str, Effect]:
    """The paths of what has another value in `new`, in the order of the settings, and what each takes."""
    before = old.leaves()
    return {path: effect_of(path) for path, value in new.leaves().items() if value != before[path]}
