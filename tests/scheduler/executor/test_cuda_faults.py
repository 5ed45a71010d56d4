"""What errors mean. The texts are those of torch 2.11 and 2.13, and of the CUDA runtime."""

import pytest

from scheduler.executor.cuda_faults import Fault, fault_of
from tests.scheduler.executor.fake_cuda import AcceleratorError, OutOfMemoryError


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Fault.MEMORY),
        (AcceleratorError(2, "out of memory"), Fault.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Fault.MEMORY),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            Fault.MEMORY,
        ),
        (AcceleratorError(700, "an illegal memory access was encountered"), Fault.LOST),
        (AcceleratorError(710, "device-side assert triggered"), Fault.LOST),
        (AcceleratorError(214, "uncorrectable ECC error encountered"), Fault.LOST),
        (AcceleratorError(100, "no CUDA-capable device is detected"), Fault.LOST),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Fault.LOST),
        (RuntimeError("CUDA error: unspecified launch failure"), Fault.LOST),
        (RuntimeError("CUDA error: unknown error"), Fault.LOST),
        (AcceleratorError(900, "operation not permitted when stream is capturing"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), None),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), Fault.MODEL),
        (RuntimeError("the buffer is out of memory bounds"), Fault.MODEL),
        (ValueError("CUDA is not what this is about"), Fault.MODEL),
        (MemoryError(), Fault.MODEL),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fault_of(error: Exception, fault: Fault | None) -> None:
    assert fault_of(error) is fault
