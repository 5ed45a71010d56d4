"""PyTriton, Ray Serve and MLServer beside this service: one model, one load, one machine."""
