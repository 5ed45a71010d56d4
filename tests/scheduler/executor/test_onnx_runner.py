"""ONNX Runtime behind the interface of a runner: threads, memory, and that it tells nobody what it does."""

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from scheduler.executor.onnx_convert import convert
from scheduler.executor.onnx_runner import OnnxRunner
from scheduler.executor.runner import Array
from tests.scheduler.executor.onnx_models import FEATURES, STEPS, Recurrent, archive, of_x

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.usefixtures("torch_threads"),
]


@pytest.fixture(scope="module")
def model() -> bytes:
    return convert(archive(Recurrent(nn.LSTM(6, 8, batch_first=True))), of_x())


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, FEATURES, STEPS)).astype(np.float32)


def niceness_of_threads() -> dict[int, int]:
    """Of every thread of this process, by its number."""
    found = {}
    for task in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found[task] = os.getpriority(os.PRIO_PROCESS, task)
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_it_computes_on_as_many_threads_as_it_is_given(model: bytes, threads: int) -> None:
    """The caller's is one of them."""
    before = niceness_of_threads()
    runner = OnnxRunner(model, of_x(), threads)
    runner.run([rows(4)])
    assert len(niceness_of_threads().keys() - before.keys()) == threads - 1


def test_threads_of_one_that_stood_back_are_started_again(model: bytes) -> None:
    """Loaded at a lower priority, as beside engines that serve, and then used at the usual one."""

    def load() -> OnnxRunner:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        runner = OnnxRunner(model, of_x(), 3)
        runner.run([rows(2)])
        return runner

    before = niceness_of_threads()
    mine = before[threading.get_native_id()]
    with ThreadPoolExecutor(1) as aside:
        runner = aside.submit(load).result()
    loaded = niceness_of_threads()
    assert {loaded[task] for task in loaded.keys() - before} == {mine + 5}
    (answer,) = runner.run([rows(2)])
    used = niceness_of_threads()
    assert [used[task] for task in used.keys() - before.keys() - loaded.keys()] == [mine, mine]
    np.testing.assert_array_equal(answer, OnnxRunner(model, of_x(), 1).run([rows(2)])[0])


def test_outputs_of_a_batch_size_are_written_to_the_same_memory(model: bytes) -> None:
    """And inputs are read where they lie, also when that is elsewhere than before."""
    runner = OnnxRunner(model, of_x(), 1)
    inputs = rows(4)
    (first,) = runner.run([inputs])
    kept = first.copy()
    inputs[:] = rows(4, seed=1)
    (second,) = runner.run([inputs])
    assert second is first
    assert (second != kept).any()
    (third,) = runner.run([rows(4)])
    np.testing.assert_array_equal(third, kept)
    assert not np.shares_memory(third, runner.run([rows(5)])[0])


def test_several_threads_compute_at_once(model: bytes) -> None:
    """Each gets the answer to its own rows, again and again."""
    runner = OnnxRunner(model, of_x(), 1)
    wanted = {seed: runner.run([rows(8, seed)])[0].copy() for seed in range(4)}
    start = threading.Barrier(4)

    def compute(seed: int) -> bool:
        start.wait()
        return all(np.array_equal(runner.run([rows(8, seed)])[0], wanted[seed]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(compute, range(4)))


def test_a_file_that_is_no_model_is_refused() -> None:
    with pytest.raises(Exception, match=r"(?i)protobuf|model"):
        OnnxRunner(b"not a model", of_x(), 1)


NOSY = """
import os, sys
import numpy  # which has threads of its own
from scheduler.executor.onnx_library import runtime
before = len(os.listdir("/proc/self/task"))
library = runtime()
options = library.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
library.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_nothing_is_noted_for_its_maker(model: bytes, tmp_path: Path) -> None:
    """No files in the user's cache, and no thread that would send them; not even where that is asked for."""
    settings = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", NOSY],
        env={**os.environ, **settings},
        input=model,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"0\n"
    assert list(tmp_path.iterdir()) == []
