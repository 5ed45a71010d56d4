"""The service: processes, RPCs, and everything that talks to the outside."""
