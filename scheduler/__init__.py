"""Priority queues, batching and execution. Knows no gRPC, no Redis and no OpenTelemetry."""
