"""What fp32, tf32, fp16 and bf16 mean to torch.

fp16 and bf16 are the dtype that weights and inputs are converted to. tf32 is no dtype: tensors stay FP32,
and the matrix products, convolutions and recurrent layers of a GPU round what they multiply to ten bits of
mantissa. torch knows that as flags of the whole process, while precision here is one model's: `Tf32Switch`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NARROW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def narrow_dtype(precision: str) -> torch.dtype | None:
    """What weights and floating point inputs are converted to; None leaves them as they are."""
    return _NARROW.get(precision)


class Tf32Switch:
    """torch's flags for TF32, held the way one model wants them while it enqueues its kernels.

    The flags are read when a kernel is enqueued, not when it runs. Whoever enqueues holds the lock, so two
    models launch one after the other; a CUDA graph that is replayed launches without it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def set_to(self, allowed: bool) -> Iterator[None]:
        """Holds the flags at this until the block ends. They stay so until somebody wants them otherwise."""
        with self._lock:
            # Not the newer `fp32_precision`: torch keeps both, raises in whatever reads the older one once
            # they differ, and only setting the older one sets both.
            torch.backends.cuda.matmul.allow_tf32 = allowed
            torch.backends.cudnn.allow_tf32 = allowed
            yield


# One, because the flags are one.
TF32 = Tf32Switch()
