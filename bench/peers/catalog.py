"""Who is measured: how each is started, with what settings, and why those."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from bench.bare_model import FILE, MALLOC
from bench.peers.environments import HERE, interpreter
from bench.server_process import free_ports

ROOT = HERE.parents[1]
MODEL = "sp500_direction"
INPUT = "window"
# In the order in which the model gives them.
OUTPUTS = {
    "classification_probs": 3,
    "regression_mean": 1,
    "regression_uncertainty": 1,
    "ensemble_weights": 3,
    "features": 128,
}
MAX_BATCH = 32
TICKRING = "tickring"


@dataclass(frozen=True)
class Peer:
    """`environment` names its requirements, `script` its server, and `packages` what to tell the version of.

    `grace_s`: how long it may take to end; 0 where it has nothing to put away.
    """

    name: str
    title: str
    settings: str
    packages: tuple[str, ...]
    environment: str = ""
    script: str = ""
    options: tuple[str, ...] = ()
    grace_s: float = 15.0

    def python(self) -> Path:
        """Its interpreter; installs it where needed."""
        return interpreter(self.environment) if self.environment else Path(sys.executable)

    def command(self) -> tuple[int, list[str]]:
        """The port that it will answer on, and how to start it."""
        port, *others = free_ports(3)
        if not self.script:
            ports = [f"--grpc-port={port}", f"--http-port={others[0]}", f"--admin-port={others[1]}"]
            return port, [str(self.python()), "-m", "server", *ports]
        outputs = [f"--output={name}:{size}" for name, size in OUTPUTS.items()]
        command = [str(self.python()), "-P", "-m", f"bench.peers.{self.script}", f"--port={port}"]
        command += [f"--spare-port={others[0]}", f"--model={FILE}", f"--input={INPUT}", *outputs]
        return port, [*command, f"--max-batch={MAX_BATCH}", *self.options]

    def variables(self) -> dict[str, str]:
        """Of its processes. One thread computes, with the malloc of the floor, in each of them."""
        if not self.script:
            return {"TICKRING_SCHEDULER__DEFAULT_CLASS": "real_time_trading"}
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", **MALLOC}
        # Triton's Python backend takes whichever libpython is found, which must fit the modules of ours.
        libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
        return {**variables, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}


_RAY = (
    "throughput mode (`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`), one replica, "
    "`@serve.batch(max_batch_size=32, batch_wait_timeout_s=0.001)`, `max_ongoing_requests=256`, "
    "no access log, no dashboard, no usage statistics"
)

PEERS = [
    Peer(
        TICKRING,
        "tickring",
        'as installed, but for `scheduler.default_class = "real_time_trading"`: a request that names no '
        "class is bulk otherwise, which waits for company. At warm-up it takes the faster of TorchScript and "
        "ONNX Runtime for this file, and has a second instance for cores that are idle",
        ("torch", "grpcio"),
        grace_s=40.0,
    ),
    Peer(
        "pytriton",
        "PyTriton",
        "`max_batch_size=32`, `DynamicBatcher(max_queue_delay_microseconds=0)`, one inference function, "
        "no metrics",
        ("nvidia-pytriton", "torch"),
        "pytriton",
        "serve_pytriton",
    ),
    Peer(
        "ray",
        "Ray Serve, gRPC proxy",
        f"{_RAY}, callers at its gRPC proxy (`RAY_SERVE_ENABLE_DIRECT_INGRESS=0`)",
        ("ray", "torch", "grpcio"),
        "ray",
        "serve_ray",
    ),
    Peer(
        "ray-direct",
        "Ray Serve, direct ingress",
        f"{_RAY}, callers at the gRPC port of the replica, where production has a balancer in between",
        ("ray", "torch", "grpcio"),
        "ray",
        "serve_ray",
        ("--direct",),
    ),
    Peer(
        "mlserver",
        "MLServer",
        "`parallel_workers=0`, `max_batch_size=32`, `max_batch_time=0.001` (0 turns batching off), "
        "`debug=false`, no metrics",
        ("mlserver", "torch", "grpcio"),
        "mlserver",
        "serve_mlserver",
        grace_s=0.0,
    ),
]
