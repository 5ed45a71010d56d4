"""What CUDA instances do when the model, the memory or the device fails. The device is a fake."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from scheduler.executor.cuda import CudaDevice, CudaInstance
from scheduler.executor.runner import Array, DeviceLost, ModelUnusable
from scheduler.partition import Outcome
from tests.scheduler.executor.cuda_passage import BUCKETS, CudaPassage, check, rows, scaled
from tests.scheduler.executor.fake_cuda import (
    AcceleratorError,
    FakeDeviceModel,
    FakeTensor,
    OutOfMemoryError,
    illegal_address,
)


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
                {},
                passage.clock,
                lambda *failure: None,
                CudaDevice(passage.calls, None, True, passage.limits, passage.notes),
                max_batch=1,
                urgent=urgent,
            )
        assert [stream.urgent for stream in passage.calls.streams] == [False, False, True]


def test_a_thread_settles_every_size_that_is_no_graph() -> None:
    """What cuDNN found the fastest is known to the thread that warmed up alone."""
    with CudaPassage(graphs=False) as passage:
        passage.warm()
        passage.instance.settle()
        assert passage.model.launches == [1, 2, 4, 8]
