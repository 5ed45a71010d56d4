"""The flags that decide what FP32 means on a GPU; they exist without one, too."""

import threading
from collections.abc import Iterator

import pytest
import torch

from scheduler.executor.precision import Tf32Switch, narrow_dtype


def flags() -> set[bool]:
    """Whether matrix products, and convolutions and recurrent layers, may use TF32."""
    return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The flags are the whole process's."""
    products, others = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = others


def test_only_the_narrow_precisions_have_a_dtype_of_their_own() -> None:
    """TF32 is a way to multiply."""
    assert [narrow_dtype(name) for name in ("fp32", "tf32", "fp16", "bf16")] == [
        None,
        None,
        torch.float16,
        torch.bfloat16,
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("allowed", [True, False])
def test_all_flags_are_set(allowed: bool) -> None:
    """In the older and the newer of torch's two ways to say it: what reads one raises where they differ."""
    backends = torch.backends
    with Tf32Switch().set_to(allowed):
        assert flags() == {allowed}
        newer = {
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            backends.cudnn.rnn.fp32_precision,  # type: ignore[attr-defined]
        }
        assert ("tf32" in newer, newer == {"tf32"}) == (allowed, allowed)


def test_a_model_that_wants_them_otherwise_waits() -> None:
    """So that each enqueues with its own."""
    switch = Tf32Switch()
    seen = []
    waits = threading.Event()

    def other() -> None:
        waits.set()
        with switch.set_to(False):
            seen.append(flags())

    thread = threading.Thread(target=other)
    with switch.set_to(True):
        thread.start()
        assert waits.wait(60)
        thread.join(0.05)  # long enough to get in, if it could
        seen.append(flags())
    thread.join(60)
    assert seen == [{True}, {False}]


def test_a_model_that_raises_lets_go() -> None:
    """Or no other model could compute again."""
    switch = Tf32Switch()
    with pytest.raises(RuntimeError, match="its own"), switch.set_to(True):
        raise RuntimeError("its own")
    with switch.set_to(False):
        assert flags() == {False}
