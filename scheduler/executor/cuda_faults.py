"""What an error of the CUDA path means: the rows' fault, too little memory, or a device that is gone.

A sticky error leaves the process's CUDA context unusable: every later call fails with it too. The list
is NVIDIA's, "CUDA Runtime API, Data types, cudaError": those whose text says that the process must be
terminated and relaunched, and those that say that the device is not there.
"""

import re
from enum import Enum


class Fault(Enum):
    """Whose fault it is, and so what to do: bisect, run in smaller parts, or end the engine."""

    MODEL = "model"
    MEMORY = "memory"
    LOST = "lost"


MEMORY_CODES = frozenset({2})  # cudaErrorMemoryAllocation
LOST_CODES = frozenset(
    {
        3,  # initialization error
        4,  # the driver is being unloaded
        46,  # devices are busy or unavailable
        100,  # no device
        101,  # invalid device
        201,  # context is not valid
        214,  # uncorrectable ECC error
        220,  # uncorrectable NVLink error
        226,  # contained memory error: this process's data is gone
        700,  # illegal address
        702,  # launch timed out
        709,  # context is destroyed
        710,  # device-side assert: the rows' fault, but the context is gone with it
        714,  # hardware stack error
        715,  # illegal instruction
        716,  # misaligned address
        717,  # invalid address space
        718,  # invalid program counter
        719,  # launch failure
        802,  # system not ready
        999,  # unknown
    }
)
# How torch words what has no code: the allocator of cuBLAS or cuDNN, and older errors of the runtime.
_MEMORY_WORDS = re.compile(r"out of memory|ALLOC_FAILED", re.IGNORECASE)
_LOST_WORDS = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|uncorrectable|hardware stack error"
    r"|illegal instruction|misaligned address|invalid program counter|launch timed out|no CUDA-capable device"
    r"|unknown error|busy or unavailable|driver shutting down|context is destroyed|initialization error",
    re.IGNORECASE,
)
_CUDA_WORDS = re.compile(r"CUDA|CUBLAS|CUDNN|cuBLAS|cuDNN|NVRTC|CUFFT|cuFFT")


def fault_of(error: Exception) -> Fault | None:
    """What the error says by itself; None where only the device can tell.

    Errors that do not come from CUDA are the model's. Of those that do, one that is not known is None: a
    library that failed may have left the context as it was, or not.
    """
    code = getattr(error, "error_code", None)  # of torch.AcceleratorError
    if isinstance(code, int):
        if code in MEMORY_CODES:
            return Fault.MEMORY
        return Fault.LOST if code in LOST_CODES else None
    if type(error).__name__ == "OutOfMemoryError":
        return Fault.MEMORY
    text = str(error)
    if not isinstance(error, RuntimeError) or not _CUDA_WORDS.search(text):
        return Fault.MODEL
    if _LOST_WORDS.search(text):
        return Fault.LOST
    return Fault.MEMORY if _MEMORY_WORDS.search(text) else None
