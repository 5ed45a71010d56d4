"""What is to be offered: flows of calls, and how long."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client.channel import TlsFiles
from client.load.arrivals import Arrivals
from tickring.v1 import types_pb2

UNARY, STREAM = "unary", "stream"


@dataclass(frozen=True, slots=True)
class Flow:
    """Calls of one kind: at the instants of `arrivals` (open loop), or `in_flight` of them always (closed).

    `payloads` are PredictRequests without priority or timeout, sent in turn. `timeout_s` runs from the
    instant at which a call should be sent. `priority` is a number from 1 to 5; 0 leaves it to the server.
    `connections` are of each process, with an RPC stream on each where `mode` is "stream".

    `method` is that of another service, "/package.Service/Method": `payloads` are its requests, unary and
    without priority, the timeout is the RPC's alone, and of answers no more is known than when they came.
    """

    name: str
    payloads: Sequence[bytes] = field(repr=False)
    arrivals: Arrivals | None = None
    in_flight: int = 0
    mode: str = UNARY
    priority: types_pb2.Priority = types_pb2.PRIORITY_UNSPECIFIED
    timeout_s: float | None = None
    connections: int = 1
    rows: int = 1
    method: str = ""

    @property
    def offered(self) -> str:
        """For people."""
        if self.arrivals is None:
            return f"{self.in_flight} in flight"
        size = f" of {self.arrivals.size}" if self.arrivals.kind == "bursts" else ""
        return f"{self.arrivals.rate_per_s:g}/s {self.arrivals.kind}{size}"


@dataclass(frozen=True, slots=True)
class Server:
    """Where calls go; the files of TLS by path, so that every process reads them."""

    target: str
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def files(self) -> TlsFiles | None:
        """None: in clear text."""
        if not (self.tls or self.tls_ca or self.tls_cert):
            return None
        ca, cert, key = (
            None if path is None else Path(path) for path in (self.tls_ca, self.tls_cert, self.tls_key)
        )
        return TlsFiles(ca, cert, key)


@dataclass(frozen=True, slots=True)
class Load:
    """Flows side by side. What is sent in the first `warm_up_s` is not counted; `duration_s` follows."""

    server: Server
    flows: Sequence[Flow]
    duration_s: float
    warm_up_s: float = 1.0
    linger_s: float = 5.0  # after the last send; what is out then is cancelled
    seed: int = 0
    intervals: int = 60  # parts of the duration that are told apart

    @property
    def interval_s(self) -> float:
        """At least a second, so that quantiles of a part mean something."""
        return max(1.0, self.duration_s / self.intervals)


def to_json(load: Load) -> dict[str, Any]:
    """For a worker; bytes as Latin-1 text, which JSON can hold."""
    told = asdict(load)
    for flow in told["flows"]:
        flow["payloads"] = [payload.decode("latin-1") for payload in flow["payloads"]]
    return told


def from_json(told: dict[str, Any]) -> Load:
    """What `to_json` was given."""
    flows = []
    for flow in told["flows"]:
        arrivals = flow["arrivals"]
        if arrivals is not None:
            arrivals = Arrivals(**{**arrivals, "recorded": tuple(arrivals["recorded"])})
        payloads = [payload.encode("latin-1") for payload in flow["payloads"]]
        flows.append(Flow(**{**flow, "arrivals": arrivals, "payloads": payloads}))
    return Load(**{**told, "server": Server(**told["server"]), "flows": flows})
