"""torch's CUDA where there is none; the rest of it needs a GPU and is tested in tests/gpu."""

import numpy as np
import pytest
import torch

from scheduler.executor.cuda_calls import NotMapped
from scheduler.executor.runner import ModelUnusable
from scheduler.executor.torch_cuda import TorchCuda, _map

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@without_gpu
def test_no_device_is_said_in_one_line() -> None:
    """Whatever torch raises: a build without CUDA has another word for it than one without a driver."""
    with pytest.raises(ModelUnusable, match="device cuda:0 cannot be used: ") as caught:
        TorchCuda("cuda:0")
    assert "\n" not in str(caught.value)


@without_gpu
def test_memory_that_no_driver_can_map_is_refused() -> None:
    with pytest.raises(NotMapped, match=r"libcuda|cuMemHostRegister"):
        _map(np.zeros((2, 64), np.uint8))
