"""Version 1 of the protocol: stubs generated from the protos beside them by `make proto`."""
