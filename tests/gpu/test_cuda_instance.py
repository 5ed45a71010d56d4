"""CUDA instances on a real device, through the same passages as on the fake one; and on that, where it fits.

What is asked of both devices runs everywhere with the fake one, so that the tests themselves are known to
work before there is a GPU. `python -m tests.gpu.test_cuda_instance plain|graph` is the process whose device
is lost.
"""

import contextlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scheduler.clock import MonotonicClock
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.cuda_calls import NotMapped
from scheduler.executor.instance import Instance
from scheduler.executor.parity import errors
from scheduler.executor.runner import Array, DeviceLost, DeviceSettings, load_model
from scheduler.executor.torch_cuda import TorchCuda
from scheduler.partition import Outcome
from scheduler.signature import DataType, TensorSpec
from server.repository import load_repository, read_verified
from server.settings import bundled_repository
from tests.gpu.device_world import (
    DEVICE,
    HUNGRY,
    KEPT,
    RECIPROCAL,
    SCALED,
    TOUCHY,
    CudaWorld,
    DevicePassage,
    FakeWorld,
    World,
    on_device,
)
from tests.scheduler.executor.cuda_passage import BUCKETS, TWO_IN_TWO_OUT, check, rows, scaled
from tests.scheduler.executor.passage import Answer, Function, Passage, signature

PROGRAMS = ("plain", "graph", "graph of model")
FEEDS = ("staged", "mapped")


class Doomed(nn.Module):
    """Reads past the end of a table where a row starts with 13: the device stops with an assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[x[:, :1].long()]


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def world(request: pytest.FixtureRequest) -> World:
    return FakeWorld() if request.param == "fake" else CudaWorld()


SIZES = [(1,), (3, 2, 1), (8, 8), (5,), (1, 1, 1), (7, 2)]


def ask_in_all_sizes(passage: Passage) -> None:
    """Several batches of several sizes, whose padding is left over from each other."""
    for sizes in SIZES:
        asked = [rows(*np.arange(size) + 10.0 * index, scale=index + 1.0) for index, size in enumerate(sizes)]
        check(passage.ask(*asked), *asked)
    assert not passage.failures


# -- on both devices ---------------------------------------------------------------------------


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_row_goes_its_way_in_every_program(world: World, program: str, feed: str) -> None:
    wanted = f"{program}, {feed}"
    with DevicePassage(world.calls, world.model(SCALED), wanted=wanted) as passage:
        passage.warm()
        assert passage.programs() == {wanted}
        assert passage.notes.warnings == []
        ask_in_all_sizes(passage)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("place", range(7))
def test_row_that_raises_fails_alone(world: World, feed: str, place: int) -> None:
    """And is nobody's padding afterwards. A model that looks at its rows cannot be captured."""
    with DevicePassage(world.calls, world.model(TOUCHY), wanted=f"plain, {feed}") as passage:
        passage.warm()
        assert passage.programs() == {f"plain, {feed}"}
        refused = {note["program"] for note in passage.notes.warnings}
        assert refused == {"graph, staged", "graph, mapped", "graph of model"}
        asked = [rows(13.0 if at == place else float(at)) for at in range(7)]
        answers = passage.ask(*asked)
        assert answers.pop(place) is Outcome.ERROR
        check(answers, *asked[:place], *asked[place + 1 :])
        assert [extent.guilty for _, _, extent in passage.failures] == [1]
        check(passage.ask(rows(1.0, 2.0, 3.0)), rows(1.0, 2.0, 3.0))
        assert len(passage.failures) == 1


def test_refused_capture_leaves_others_possible(world: World) -> None:
    """Of the same process, on another stream."""
    with DevicePassage(world.calls, world.model(TOUCHY)) as passage:
        passage.warm()
        assert passage.notes.warnings
    with DevicePassage(world.calls, world.model(SCALED), wanted="graph, staged") as passage:
        passage.warm()
        assert (passage.programs(), passage.notes.warnings) == ({"graph, staged"}, [])
        ask_in_all_sizes(passage)


def test_plain_winner_leaves_graphs_of_later_sizes_possible(world: World) -> None:
    """All graphs of the smaller sizes are gone by then."""
    with DevicePassage(world.calls, world.model(SCALED), wanted="plain, mapped") as passage:
        passage.warm()
        assert passage.notes.warnings == []


@pytest.mark.parametrize("program", ["plain, staged", "graph, staged", "graph, mapped"])
def test_output_that_is_not_finite_fails_alone(world: World, program: str) -> None:
    with DevicePassage(world.calls, world.model(RECIPROCAL), wanted=program) as passage:
        passage.warm()
        assert passage.programs() == {program}
        answers = passage.ask(rows(1.0), rows(0.0), rows(3.0), rows(float("nan")))
        assert (answers[1], answers[3]) == (Outcome.NON_FINITE,) * 2
        for answer, value in ((answers[0], 1.0), (answers[2], 3.0)):
            assert not isinstance(answer, Outcome)
            expected = np.float32(1) / np.array([[value, value + 1, value + 2]], np.float32)
            np.testing.assert_allclose(answer[0], expected, rtol=1e-6)
        assert not passage.failures


def test_batch_that_does_not_fit_runs_in_parts_and_later_ones_are_smaller(world: World) -> None:
    """Until the memory is back; nobody's request fails."""
    with DevicePassage(world.calls, world.model(HUNGRY), graphs=False) as passage:
        passage.warm()
        asked = rows(*map(float, range(8)))
        with world.room_for(2):
            for _ in range(2):
                check(passage.ask(asked), asked)
                assert passage.dispatcher.targets.sizes == [2]
        assert not passage.failures
        for _ in range(4):
            passage.clock.advance(3_600_000_000_000)
            passage.limits.recover(passage.clock.now_ns())
        check(passage.ask(asked), asked)
        assert passage.dispatcher.targets.sizes == [8]


# -- on threads --------------------------------------------------------------------------------


class CpuPassage(Passage):
    """The same with instances on the CPU: what the threads do is known to work before there is a GPU."""

    def __init__(self) -> None:
        super().__init__(Function(TWO_IN_TWO_OUT, in_its_dtypes), BUCKETS)

    def another(self) -> Instance:
        return CpuInstance(
            self.arena,
            self.dispatcher,
            {0: self.runner},
            BUCKETS[-1],
            MonotonicClock(),
            lambda *failure: self.failures.append(failure),
        )


def in_its_dtypes(inputs: Sequence[Array]) -> Sequence[Array]:
    y, count = scaled(inputs)
    return y.astype(np.float32), count.astype(np.int64)


def threads_answer_everything(passage: Passage, instances: Sequence[Instance]) -> None:
    """Requests of all sizes, many at a time, through instances that each have a thread."""

    def work(instance: Instance) -> None:
        try:
            instance.settle()
            while (batch := passage.dispatcher.next_batch()) is not None:
                instance.run(batch)
        except BaseException as error:
            died.append(error)

    died: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(instance,), daemon=True) for instance in instances]
    for thread in threads:
        thread.start()
    try:
        for turn in range(50):
            asked = [
                rows(*np.arange(size) + 10.0 * index, scale=turn + 1.0)
                for index, size in enumerate((8, 3, 1, 4))
            ]
            answers: list[Answer] = [Outcome.LOST] * len(asked)
            for index, arrays in enumerate(asked):
                passage._push(arrays, None, partial(passage._end, answers, index))
            while any(answer is Outcome.LOST for answer in answers):
                assert not died, died
                if not passage.partition.drain():
                    os.sched_yield()
            check(answers, *asked)
    finally:
        passage.dispatcher.stop()
        for thread in threads:
            thread.join(30)
    assert not died
    assert not passage.failures


def test_instances_on_threads_answer_everything() -> None:
    """On the CPU."""
    with CpuPassage() as passage:
        instances = [passage.another() for _ in range(3)]
        for instance in instances:
            measured = instance.warm_up(0, BUCKETS, 3)
        passage.latency.seed(0, measured)
        passage.dispatcher.warm()
        threads_answer_everything(passage, instances)


@pytest.mark.gpu
@pytest.mark.parametrize("program", ["plain, staged", "plain, mapped", "graph, staged", "graph, mapped"])
def test_streams_answer_everything_at_once(program: str) -> None:
    """Two of them and an urgent one, each with a thread; plain launches make handles of libraries there."""
    world = CudaWorld()
    with DevicePassage(world.calls, world.model(SCALED), wanted=program) as passage:
        instances = [passage.instance, passage.another(), passage.another(urgent=True)]
        passage.warm()
        for instance in instances[1:]:
            instance.warm_up(0, BUCKETS, 3)
        assert passage.programs() == {program}
        threads_answer_everything(passage, instances)


# -- on the device only ------------------------------------------------------------------------


@pytest.mark.gpu
def test_urgent_streams_have_a_priority() -> None:
    calls = TorchCuda(DEVICE)
    assert calls.stream(urgent=True).stream.priority < calls.stream(urgent=False).stream.priority


@pytest.mark.gpu
def test_refused_mapping_leaves_nothing_behind() -> None:
    """Memory that may only be read: refused or not, what comes next works."""
    calls = TorchCuda(DEVICE)
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ)
    KEPT.append(memory)
    with contextlib.suppress(NotMapped):
        calls.mapped(np.frombuffer(memory, np.uint8).reshape(1, -1))
    stream = calls.stream(urgent=False)
    with calls.on(stream):
        tensor = calls.device((4,), np.dtype(np.float32)) + 1
    calls.finish(stream)
    assert tensor.cpu().tolist() == [1, 1, 1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "spec", [TensorSpec("x", kind, (3,)) for kind in DataType], ids=lambda spec: spec.data_type.name
)
@pytest.mark.parametrize("feed", FEEDS)
def test_rows_of_every_data_type_arrive(feed: str, spec: TensorSpec) -> None:
    """In elements of whatever width their length allows."""
    its_signature = signature(
        inputs=(spec,), outputs=(TensorSpec("y", spec.data_type, (3,)),), finite_outputs=False
    )

    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    calls = TorchCuda(DEVICE)
    with DevicePassage(calls, on_device(Copy(), its_signature), wanted=f"graph, {feed}") as passage:
        passage.warm()
        assert passage.programs() == {f"graph, {feed}"}
        asked = [np.arange(15).reshape(5, 3).astype(spec.data_type.dtype)]
        (answer,) = passage.ask(asked)
        assert not isinstance(answer, Outcome)
        np.testing.assert_array_equal(answer[0], asked[0])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("program", ["plain, staged", "graph, staged", "graph, mapped"])
def test_bundled_model_answers_as_on_the_cpu(precision: str, program: str) -> None:
    """Through the whole instance, within what the precision allows; and graphs like plain launches."""
    (manifest,) = load_repository(bundled_repository()).manifests
    its_signature, file = manifest.signature(1), read_verified(manifest.latest)
    windows = np.random.default_rng(0).standard_normal((20, 50, 60), dtype=np.float32)
    reference = load_model(manifest.format, file, its_signature, DeviceSettings())
    wanted = [output.numpy() for output in reference.forward([torch.from_numpy(windows)])]
    model = load_model(manifest.format, file, its_signature, DeviceSettings(DEVICE, precision=precision))
    with DevicePassage(TorchCuda(DEVICE), model, wanted=program) as passage:
        passage.warm()
        assert passage.programs() == {program}
        (answer,) = passage.ask([windows])
    assert not isinstance(answer, Outcome)
    found = errors(its_signature, wanted, answer)
    assert all(error.is_within(precision) for error in found), found


@pytest.mark.gpu
@pytest.mark.parametrize("program", ["plain", "graph"])
def test_device_side_assertion_ends_the_engine(program: str) -> None:
    """In a process of its own: its device is gone for it, and no row is bisected for that."""
    command = [sys.executable, "-m", "tests.gpu.test_cuda_instance", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout == "answered\nlost\n", done.stdout + done.stderr


def lose_the_device(program: str) -> None:
    """Prints what becomes of a good row, and then of one that makes the device stop."""
    its_signature = signature(finite_outputs=False)
    model = on_device(Doomed(), its_signature)
    with DevicePassage(TorchCuda(DEVICE), model, wanted=f"{program}, staged") as passage:
        passage.warm()
        assert passage.programs() == {f"{program}, staged"}
        (answer,) = passage.ask([np.ones((1, 2), np.float32)])
        assert not isinstance(answer, Outcome)
        print("answered", flush=True)
        try:
            passage.ask([np.full((1, 2), 13, np.float32)])
        except DeviceLost:
            assert not passage.failures
            print("lost", flush=True)


if __name__ == "__main__":
    lose_the_device(sys.argv[1])
    os._exit(0)  # what is destroyed on the way out would find no device
