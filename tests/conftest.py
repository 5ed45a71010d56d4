"""For every test: what is marked `gpu` runs where there is a CUDA device, and is skipped elsewhere."""

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for a message to repeat it whole, whatever pytest calls its own."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)
