"""PyTriton with the model; run by its own interpreter.

Triton forms batches of what waits as soon as the model is free: a delay would only be added to lone calls.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.bare_model import load
from bench.peers import serving


def main() -> None:
    """Serves until it is told to end."""
    given = serving.parser(__doc__).parse_args()
    model, sizes = load(given.model), serving.sizes(given.outputs)

    @batch  # type: ignore[untyped-decorator]
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            answers = model(torch.from_numpy(inputs[given.input]))
        return {name: answer.numpy() for name, answer in zip(sizes, answers, strict=True)}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=given.port,
        # PyTriton itself asks over HTTP whether Triton is ready.
        http_address="127.0.0.1",
        http_port=given.spare_port,
        allow_metrics=False,
    )

    def end(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    with Triton(config=config, workspace=Path(os.environ["TMPDIR"]) / "pytriton") as triton:
        triton.bind(
            model_name="sp500_direction",
            infer_func=infer,
            inputs=[Tensor(name=given.input, dtype=np.float32, shape=(50, 60))],
            outputs=[Tensor(name=name, dtype=np.float32, shape=(size,)) for name, size in sizes.items()],
            config=ModelConfig(
                max_batch_size=given.max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
        )
        signal.signal(signal.SIGTERM, end)
        triton.serve()


if __name__ == "__main__":
    main()
