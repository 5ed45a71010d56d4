"""KServe's protocol in Triton's form: stubs generated from the protos beside them by `make proto`."""
