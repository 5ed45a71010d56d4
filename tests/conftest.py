"""For every test: what is marked `gpu` runs where there is a CUDA device, and is skipped elsewhere."""

from functools import cache

import pytest


@cache
def cuda_device_here() -> bool:
    """Asked only once a test needs one: loading torch takes seconds."""
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before any fixture of the test: those may need the device too.
    if item.get_closest_marker("gpu") and not cuda_device_here():
        pytest.skip("no CUDA device")
