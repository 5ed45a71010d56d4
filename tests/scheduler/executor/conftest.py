from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Puts back the number of threads, which is the whole process's and set by every load."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
