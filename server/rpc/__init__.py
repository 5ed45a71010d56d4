"""One module per gRPC service, and what they share: checking requests, encoding responses."""
