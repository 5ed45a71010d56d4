"""CUDA instances, driven through a fake that does nothing before it is waited for."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.cuda import CudaDevice, CudaInstance, map_slab
from scheduler.executor.instance import Instance
from scheduler.executor.runner import Array, DeviceLost, DeviceModel, ModelUnusable, Runner
from scheduler.partition import Outcome
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.fake_cuda import (
    AcceleratorError,
    Compute,
    FakeCuda,
    FakeDeviceModel,
    FakeTensor,
    OutOfMemoryError,
    illegal_address,
)
from tests.scheduler.executor.passage import Passage, signature

BUCKETS = (1, 2, 4, 8)
TWO_IN_TWO_OUT = signature(
    inputs=(TensorSpec("x", DataType.FP32, (3,)), TensorSpec("scale", DataType.FP64, ())),
    outputs=(TensorSpec("y", DataType.FP32, (3,)), TensorSpec("count", DataType.INT64, (2,))),
)


def scaled(inputs: Sequence[Array]) -> Sequence[Array]:
    x, scale = inputs
    return x * scale[:, None], np.stack([scale, scale + 1], axis=1)


class Notebook:
    """What an instance told."""

    def __init__(self) -> None:
        self.infos: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.infos.append({"event": event, **facts})

    def warning(self, event: str, **facts: Any) -> None:
        self.warnings.append({"event": event, **facts})


class CudaPassage(Passage):
    """A passage over a fake device. `with … as passage: passage.warm(); passage.ask(…)`."""

    def __init__(
        self,
        its_signature: ModelSignature = TWO_IN_TWO_OUT,
        compute: Compute = scaled,
        *,
        graphs: bool = True,
        mapping: bool = True,
        model: Callable[[FakeCuda, ModelSignature, Compute], FakeDeviceModel] = FakeDeviceModel,
    ) -> None:
        self.calls = FakeCuda(advance=lambda ns: self.clock.advance(ns))
        if not mapping:
            self.calls.refuse_mapping = "not today"
        self.graphs = graphs
        self.model = model(self.calls, its_signature, compute)
        self.notes = Notebook()
        super().__init__(self.model, BUCKETS)  # type: ignore[arg-type]  # only its signature is used

    def make_instance(self, runner: Runner, buckets: tuple[int, ...]) -> Instance:
        model: DeviceModel = self.model
        self.limits = BatchLimits(self.dispatcher.limit_batches)
        slab = map_slab(self.calls, self.arena, buckets[-1], self.notes)
        return CudaInstance(
            self.arena,
            self.dispatcher,
            [model],
            self.clock,
            lambda *failure: self.failures.append(failure),
            CudaDevice(self.calls, slab, self.graphs, self.limits, self.notes),
            max_batch=buckets[-1],
        )

    def warm(self, buckets: Sequence[int] = BUCKETS) -> dict[int, int]:
        measured = self.instance.warm_up(0, buckets, 3)
        self.latency.seed(0, measured)
        self.dispatcher.warm()
        self.model.launches.clear()
        return measured

    def programs(self) -> dict[int, str]:
        return {
            note["bucket"]: note["program"] for note in self.notes.infos if note["event"] == "bucket is warm"
        }


def rows(*values: float, scale: float = 2.0) -> list[Array]:
    return [np.array([[v, v + 1, v + 2] for v in values]), np.full(len(values), scale)]


def check(answers: Sequence[Any], *asked: Sequence[Array]) -> None:
    for answer, (x, scale) in zip(answers, asked, strict=True):
        assert not isinstance(answer, Outcome), answer
        np.testing.assert_array_equal(answer[0], (x * scale[:, None]).astype(np.float32))
        np.testing.assert_array_equal(answer[1], np.stack([scale, scale + 1], axis=1))


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize(
    ("launch", "graph", "select", "copy"),
    [(10, 1, 0, 0), (1, 10, 0, 0), (10, 1, 500, 0), (10, 1, 0, 500)],
    ids=["graphs pay", "plain pays", "kernel is slow", "copies are slow"],
)
def test_every_row_goes_its_way_in_whatever_is_fastest(
    graphs: bool, mapping: bool, launch: int, graph: int, select: int, copy: int
) -> None:
    """Several batches of several sizes, whose padding is left over from each other."""
    with CudaPassage(graphs=graphs, mapping=mapping) as passage:
        calls = passage.calls
        calls.launch_cost_ns, calls.graph_cost_ns = launch, graph
        calls.select_cost_ns, calls.copy_cost_ns = select, copy
        passage.warm()
        for sizes in [(1,), (3, 2, 1), (8, 8), (5,), (1, 1, 1), (7, 2)]:
            asked = [
                rows(*np.arange(size) + 10 * index, scale=index + 1.0) for index, size in enumerate(sizes)
            ]
            check(passage.ask(*asked), *asked)
        assert not passage.failures


def test_the_fastest_program_is_chosen_by_measurement() -> None:
    """Per bucket, with the host's part and the copies counted in."""

    def chosen(*, graphs: bool = True, mapping: bool = True, **costs: int) -> str:
        with CudaPassage(graphs=graphs, mapping=mapping) as passage:
            for name, value in costs.items():
                setattr(passage.calls, name, value)
            passage.warm()
            programs = set(passage.programs().values())
            assert len(programs) == 1, programs
            return programs.pop()

    assert chosen(launch_cost_ns=10, graph_cost_ns=1, select_cost_ns=500) == "graph, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=1, select_cost_ns=500, graphs=False) == "plain, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=10_000, select_cost_ns=500) == "plain, staged"
    assert chosen(launch_cost_ns=10, graph_cost_ns=1, copy_cost_ns=500) == "graph, mapped"
    # Two inputs and two outputs: the mapped feed copies one array of indexes instead of two of rows.
    assert chosen(launch_cost_ns=0, graph_cost_ns=5, copy_cost_ns=500) == "plain, mapped"
    assert chosen(launch_cost_ns=0, graph_cost_ns=5, copy_cost_ns=500, mapping=False) == "plain, staged"


def test_a_batch_of_a_graph_is_one_launch() -> None:
    """The model itself is not called any more."""
    with CudaPassage() as passage:
        passage.calls.select_cost_ns = 500
        passage.warm()
        asked = rows(*range(4))
        check(passage.ask(asked), asked)
        assert passage.model.launches == []
        assert sum(graph.replays for graph in passage.calls.graphs) > 0


def test_capture_that_fails_leaves_plain_launches_with_the_reason() -> None:
    with CudaPassage() as passage:
        passage.calls.refuse_capture = AcceleratorError(
            900, "operation not permitted when stream is capturing"
        )
        passage.warm()
        assert all(name.startswith("plain") for name in passage.programs().values())
        refused = {note["program"] for note in passage.notes.warnings}
        assert refused == {"graph, staged", "graph, mapped", "graph of model"}
        assert all("not permitted" in note["reason"] for note in passage.notes.warnings)
        asked = rows(*range(5))
        check(passage.ask(asked), asked)


def test_slab_that_cannot_be_mapped_is_staged_with_a_warning() -> None:
    with CudaPassage(mapping=False) as passage:
        passage.warm()
        assert passage.notes.warnings == [
            {"event": "input slab is not mapped, batches are staged in pinned memory", "reason": "not today"}
        ]
        assert all("staged" in name for name in passage.programs().values())
        asked = rows(*range(8))
        check(passage.ask(asked), asked)


def test_kernel_that_brings_other_rows_is_not_used() -> None:
    """Before anybody's row goes through it."""
    with CudaPassage() as passage:
        passage.calls.select_from = lambda index: index * 0
        passage.calls.copy_cost_ns = 500
        passage.warm()
        assert "staged" in passage.programs()[8]
        assert {note["reason"] for note in passage.notes.warnings} == {
            "rows did not arrive as they were written"
        }
        asked = rows(*range(8))
        check(passage.ask(asked), asked)


def test_graph_that_answers_otherwise_is_not_used() -> None:
    with CudaPassage() as passage:
        passage.calls.select_cost_ns = 500
        capture = passage.calls.capture

        def spoilt(stream: Any, work: Callable[[], Any]) -> Any:
            graph, kept = capture(stream, work)
            graph.work = graph.work[:-1]  # type: ignore[attr-defined]  # without the last copy to the host
            return graph, kept

        passage.calls.capture = spoilt  # type: ignore[method-assign]
        passage.model._compute = lambda inputs: [
            array + len(passage.model.launches) for array in scaled(inputs)
        ]
        passage.warm((4,))
        assert passage.programs()[4].startswith("plain")
        assert "its outputs differ from those of a plain launch" in {
            n["reason"] for n in passage.notes.warnings
        }


def test_warm_up_reads_no_row_of_the_slab() -> None:
    """After a restart it may hold the row that ended the engine before this one."""
    seen: list[float] = []

    def compute(inputs: Sequence[Array]) -> Sequence[Array]:
        seen.append(float(np.abs(inputs[0]).max()))
        return scaled(inputs)

    with CudaPassage(compute=compute) as passage:
        passage.arena.input_rows[:] = 0x40
        passage.warm()
        assert seen
        assert set(seen) == {0.0}


# -- faults ------------------------------------------------------------------------------------


class Reading(FakeDeviceModel):
    """Looks at its rows while it is launched, as a model does that branches on a value; raises on 13."""

    def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self._calls.finish(self._calls._current[-1])
        if (inputs[0].array[:, 0] == 13).any():
            self.raised.append(len(inputs[0]))
            raise RuntimeError("unlucky row")
        return super().forward(inputs)

    @property
    def raised(self) -> list[int]:
        """The sizes of the batches in which it did."""
        return self.__dict__.setdefault("_raised", [])  # type: ignore[no-any-return]


@pytest.mark.parametrize("copy", [0, 500], ids=["staged", "mapped"])
@pytest.mark.parametrize("place", range(7))
def test_row_that_raises_fails_alone(copy: int, place: int) -> None:
    """And is nobody's padding, in the search or afterwards. Such a model cannot be captured."""
    with CudaPassage(model=Reading) as passage:
        passage.calls.copy_cost_ns = copy
        passage.calls.select_cost_ns = 500 - copy
        passage.warm()
        kind = "mapped" if copy else "staged"
        assert set(passage.programs().values()) == {f"plain, {kind}"}
        asked = [rows(13 if index == place else index) for index in range(7)]
        answers = passage.ask(*asked)
        assert answers.pop(place) is Outcome.ERROR
        asked.pop(place)
        check(answers, *asked)
        assert [extent.guilty for _, _, extent in passage.failures] == [1]
        # Every part that raised held the row itself: at most one of each size, the last of which it was in
        # by itself.
        model = passage.model
        assert isinstance(model, Reading)
        assert model.raised in ([8, 4, 2], [8, 4], [8, 4, 2, 1], [8, 2], [8, 2, 1], [8, 4, 1], [8, 1], [8])
        for size in (7, 6, 5, 3):
            check(passage.ask(*asked[:size]), *asked[:size])
        assert len(passage.failures) == 1


def test_output_that_is_not_finite_fails_alone() -> None:
    def reciprocal(inputs: Sequence[Array]) -> Sequence[Array]:
        with np.errstate(divide="ignore"):
            return 1 / inputs[0], scaled(inputs)[1]

    with CudaPassage(compute=reciprocal) as passage:
        passage.warm()
        assert passage.ask(rows(1), rows(0), rows(3))[1] is Outcome.NON_FINITE
        assert not passage.failures


@pytest.mark.parametrize("when", ["at the launch", "while it is waited for"])
def test_sticky_error_ends_the_engine_and_is_not_bisected(when: str) -> None:
    with CudaPassage(graphs=False) as passage:
        passage.warm()
        finish = passage.calls.finish

        def lose(_: object) -> None:
            passage.calls.lost = illegal_address()
            raise passage.calls.lost

        if when == "at the launch":
            passage.model.at_launch = lose
        else:
            passage.calls.finish = lose  # type: ignore[method-assign, assignment]
        with pytest.raises(DeviceLost, match="illegal memory access"):
            passage.ask(rows(1, 2))
        assert not passage.failures
        assert len(passage.model.launches) <= 1
        passage.calls.finish = finish  # type: ignore[method-assign]


def test_device_that_is_lost_at_warm_up_ends_the_engine() -> None:
    with CudaPassage() as passage:
        passage.calls.lost = AcceleratorError(100, "no CUDA-capable device is detected")
        with pytest.raises(DeviceLost, match="no CUDA-capable device"):
            passage.warm()


def test_device_that_is_lost_in_a_capture_ends_the_engine() -> None:
    with CudaPassage() as passage:
        passage.calls.refuse_capture = illegal_address()
        with pytest.raises(DeviceLost, match="illegal memory access"):
            passage.warm()


def test_error_of_a_library_is_the_models_only_if_the_device_still_answers() -> None:
    with CudaPassage(graphs=False) as passage:
        passage.warm()

        def fail(_: int) -> None:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

        passage.model.at_launch = fail
        assert passage.ask(rows(1)) == [Outcome.ERROR]
        assert passage.calls.asked > 0
        passage.calls.lost = illegal_address()
        with pytest.raises(DeviceLost, match="illegal"):
            passage.ask(rows(1))


# -- memory ------------------------------------------------------------------------------------


def fits(most: int) -> Callable[[int], None]:
    def at_launch(size: int) -> None:
        if size > most:
            raise OutOfMemoryError("CUDA out of memory")

    return at_launch


def test_batch_that_does_not_fit_runs_in_parts_and_later_ones_are_smaller() -> None:
    """Until the memory seems to be back; nobody's request fails."""
    with CudaPassage(graphs=False) as passage:
        passage.warm()
        seeded = passage.latency.table(0)
        passage.model.at_launch = fits(2)
        asked = rows(*range(7))
        check(passage.ask(asked), asked)
        assert not passage.failures
        assert passage.calls.released >= 2
        assert passage.latency.table(0) == seeded, "parts say nothing about how long a batch takes"
        passage.model.launches.clear()
        asked = rows(*range(8))
        check(passage.ask(asked), asked)
        assert set(passage.model.launches) == {2}

        passage.model.at_launch = fits(8)
        for _ in range(4):
            passage.clock.advance(3_600_000_000_000)
            passage.limits.recover(passage.clock.now_ns())
        passage.model.launches.clear()
        check(passage.ask(asked), asked)
        assert passage.model.launches == [8]


def test_memory_that_does_not_hold_a_single_row_ends_the_engine() -> None:
    with CudaPassage(graphs=False) as passage:
        passage.warm()
        passage.model.at_launch = fits(0)
        with pytest.raises(DeviceLost, match="out of memory for 1 rows"):
            passage.ask(rows(1, 2, 3))


def test_row_that_raises_in_a_batch_that_does_not_fit_fails_alone() -> None:
    with CudaPassage(graphs=False, model=Reading) as passage:
        passage.warm()
        passage.model.at_launch = fits(4)
        asked = [rows(value) for value in (1, 2, 3, 13, 5, 6, 7)]
        answers = passage.ask(*asked)
        assert answers.pop(3) is Outcome.ERROR
        check(answers, *asked[:3], *asked[4:])


def test_sizes_that_would_not_fit_are_not_warmed() -> None:
    """By what the smaller ones took, before anything is tried that must fail."""
    with CudaPassage() as passage:
        passage.model.item_bytes = 1000
        passage.calls.free = passage.calls._used + 5_000
        assert list(passage.warm()) == [1, 2, 4]
        assert max(passage.model.launches, default=0) <= 4
        assert [note["event"] for note in passage.notes.warnings] == ["batches are limited by memory"]
        assert "8 rows need about 8000 bytes" in passage.notes.warnings[0]["reason"]


def test_sizes_that_turn_out_not_to_fit_are_left_out() -> None:
    with CudaPassage() as passage:
        passage.model.at_launch = fits(2)
        assert list(passage.warm()) == [1, 2]
        assert passage.calls.released == 1
        assert [note["event"] for note in passage.notes.warnings] == ["batches are limited by memory"]


def test_what_a_first_launch_keeps_is_no_part_of_a_row() -> None:
    """Workspaces of libraries: they would make large batches look impossible."""

    class Lazy(FakeDeviceModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            if not self.launches:
                self._calls._used += 1000
                self._calls._peak += 1000
            return super().forward(inputs)

    with CudaPassage(model=Lazy) as passage:
        passage.model.item_bytes = 10
        passage.calls.free = passage.calls._used + 3000
        assert list(passage.warm()) == [1, 2, 4, 8]


def test_a_thread_settles_before_its_first_batch() -> None:
    """With zeros, whatever is in the staging; a device that is lost meanwhile ends the engine."""
    seen: list[float] = []

    def compute(inputs: Sequence[Array]) -> Sequence[Array]:
        seen.append(float(np.abs(inputs[0]).max()))
        return scaled(inputs)

    with CudaPassage(compute=compute) as passage:
        passage.warm()
        passage.ask(rows(5, 6))
        seen.clear()
        passage.instance.settle()
        assert passage.model.launches == [1]
        assert seen == [0.0]
        passage.calls.lost = illegal_address()
        with pytest.raises(DeviceLost, match="illegal memory access"):
            passage.instance.settle()


def test_model_that_does_not_fit_at_all_is_unusable() -> None:
    with CudaPassage() as passage:
        passage.model.at_launch = fits(0)
        with pytest.raises(ModelUnusable, match="m does not fit the device's memory, not even for 1 rows"):
            passage.warm()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((), np.float32, "returns y as float32 [1], its manifest says float32 [1, 3]"),
        ((1,), np.float32, "returns y as float32 [1, 1], its manifest says float32 [1, 3]"),
        ((3,), np.float64, "returns y as float64 [1, 3], its manifest says float32 [1, 3]"),
    ],
)
def test_outputs_that_a_copy_would_bend_are_refused(shape: tuple[int, ...], dtype: Any, message: str) -> None:
    """A row of one would be spread over three without a word."""

    class Odd(FakeDeviceModel):
        def forward(self, inputs: Sequence[Any]) -> Sequence[Any]:
            _, count = super().forward(inputs)
            return FakeTensor(np.zeros((len(inputs[0]), *shape), dtype), "device"), count

    with CudaPassage(model=Odd) as passage, pytest.raises(ModelUnusable, match=re.escape(message)):
        passage.warm()


def test_captures_come_after_the_model_has_settled() -> None:
    """TorchScript compiles in its first calls of a shape, and must not while it is captured."""
    with CudaPassage() as passage:
        capture = passage.calls.capture
        captured = []

        def settled(stream: Any, work: Callable[[], Any]) -> Any:
            launched = len(passage.model.launches)
            answer = capture(stream, work)
            captured.append(passage.model.launches[:launched].count(passage.model.launches[-1]))
            return answer

        passage.calls.capture = settled  # type: ignore[method-assign]
        passage.instance.warm_up(0, BUCKETS, 1)
        assert min(captured) >= 5


def test_model_that_fails_on_zeros_is_unusable() -> None:
    def fail(_: int) -> None:
        raise ValueError("zeros are not for me")

    with CudaPassage() as passage:
        passage.model.at_launch = fail
        with pytest.raises(ModelUnusable, match="m fails on 1 rows of zeros: zeros are not for me"):
            passage.warm()


def test_urgent_instances_have_an_urgent_stream() -> None:
    with CudaPassage() as passage:
        for urgent in (False, True):
            CudaInstance(
                passage.arena,
                passage.dispatcher,
                [],
                passage.clock,
                lambda *failure: None,
                CudaDevice(passage.calls, None, True, passage.limits, passage.notes),
                max_batch=1,
                urgent=urgent,
            )
        assert [stream.urgent for stream in passage.calls.streams] == [False, False, True]
