"""Ray Serve with the model; run by its own interpreter, with KServe's stubs on its path.

In its throughput mode, either behind its gRPC proxy or, `--direct`, with callers at the replica's own port.
"""

import asyncio
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

import numpy as np

from bench.bare_model import load
from bench.peers import serving


def settings(direct: bool, port: int, spare_port: int) -> dict[str, str]:
    """Ray reads them when it is imported, in each of its processes."""
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": str(int(direct)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(port + 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(spare_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(spare_port + 1),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A node that is no cluster's: everything of it but Serve's gRPC servers listens on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def listen_on_loopback() -> None:
    """Ray has no setting for where its gRPC servers listen: everywhere."""
    from grpc.aio import _server

    add_port = _server.Server.add_insecure_port

    def add_insecure_port(self: Any, address: str) -> int:
        return add_port(self, address.replace("[::]", "127.0.0.1"))

    _server.Server.add_insecure_port = add_insecure_port  # type: ignore[method-assign]


def free_port() -> int:
    """On loopback, one that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Model:
    """The replica: batches of what waits, on the loop that serves them."""

    def __init__(self, path: str, name: str, outputs: list[str]) -> None:
        self._model = load(path)
        self._name = name
        self._outputs = outputs

    async def infer(self, windows: Any) -> Any:
        """Rows in, for each its part of every output; `serve.batch` turns a call of one row into a list."""
        import torch

        with torch.inference_mode():
            answers = self._model(torch.from_numpy(np.stack(windows)))
        return list(zip(*(answer.numpy() for answer in answers), strict=True))

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802
        """KServe's call, of one row."""
        from tickring.kserve.grpc_service_pb2 import ModelInferResponse

        window = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(50, 60)
        rows = await self.infer(window)
        answer = ModelInferResponse(model_name=self._name)
        for name, row in zip(self._outputs, rows, strict=True):
            answer.outputs.add(name=name, datatype="FP32", shape=(1, *row.shape))
            answer.raw_output_contents.append(row.tobytes())
        return answer


def main() -> None:
    """Serves until it is told to end."""
    parser = serving.parser(__doc__)
    parser.add_argument("--direct", action="store_true")
    given = parser.parse_args()
    os.environ |= settings(given.direct, given.port, given.spare_port)

    proxy_port, proxy_http_port = given.port, given.spare_port
    if given.direct:
        # Ray starts its proxy all the same, which would share the ports of the replica.
        proxy_port, proxy_http_port = free_port(), free_port()

    import ray
    from ray import serve

    def end(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        runtime_env={"worker_process_setup_hook": listen_on_loopback},
        _temp_dir=os.environ["TMPDIR"],
    )
    signal.signal(signal.SIGTERM, end)
    serve.start(
        http_options={"host": "127.0.0.1", "port": proxy_http_port},
        grpc_options={
            "port": proxy_port,
            "grpc_servicer_functions": [
                "tickring.kserve.grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
            ],
        },
        logging_config={"enable_access_log": False, "log_level": "ERROR"},
    )
    # Without a wait batches are of the few calls that were read since the last one: in a trial, 350 calls/s
    # rather than 550, while a lone call took 1.3 to 2 ms less.
    Model.infer = serve.batch(  # type: ignore[method-assign]
        max_batch_size=given.max_batch, batch_wait_timeout_s=0.001
    )(Model.infer)
    deployment = serve.deployment(max_ongoing_requests=256)(Model)
    outputs = list(serving.sizes(given.outputs))
    serve.run(deployment.bind(given.model, "sp500_direction", outputs))
    asyncio.run(asyncio.Event().wait())


if __name__ == "__main__":
    main()
