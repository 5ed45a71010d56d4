"""What a server's engines have computed so far, from its metrics."""

import re
from dataclasses import dataclass

from bench.server_process import ServerProcess
from client.load.soak import fetch

_SUM = re.compile(r"^tickring_(compute_seconds|batch_size)_sum\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class EngineTime:
    """Of all models and batch sizes: seconds of computing, and the rows that were computed in them."""

    seconds: float
    rows: float

    @classmethod
    def of(cls, server: ServerProcess) -> "EngineTime":
        """Since the server started. Raises OSError when its metrics cannot be read."""
        text = fetch(f"http://127.0.0.1:{server.http_port}/metrics")
        sums = {"compute_seconds": 0.0, "batch_size": 0.0}
        for name, value in _SUM.findall(text):
            sums[name] += float(value)
        return cls(sums["compute_seconds"], sums["batch_size"])

    def row_s(self, since: "EngineTime") -> float:
        """How long a row has taken since then, on average."""
        return (self.seconds - since.seconds) / (self.rows - since.rows)
