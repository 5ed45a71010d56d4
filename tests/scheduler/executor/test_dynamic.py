"""Models with dynamic shapes, from slot to slot, on a CPU and on a fake CUDA device."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.executor.by_shape import seeds
from scheduler.executor.runner import Array, ModelUnusable
from scheduler.partition import Outcome
from scheduler.signature import DataType, ModelSignature, TensorSpec
from tests.scheduler.executor.cuda_passage import CudaPassage
from tests.scheduler.executor.fake_cuda import OutOfMemoryError
from tests.scheduler.executor.passage import Compute, Function, Passage, signature

MS = 1_000_000
LONGEST = 6
BUCKETS = (1, 2, 4, 8)
# x: steps of two numbers, k: a factor → scaled: a number for each step, every: each second step, mean.
TRACK = signature(
    inputs=(
        TensorSpec("x", DataType.FP32, (-1, 2), max_shape=(LONGEST, 2), min_shape=(1, 2)),
        TensorSpec("k", DataType.INT64, ()),
    ),
    outputs=(
        TensorSpec("scaled", DataType.FP32, (-1,), max_shape=(LONGEST,)),
        TensorSpec("every", DataType.INT16, (-1, 2), max_shape=(LONGEST // 2, 2)),
        TensorSpec("mean", DataType.FP64, ()),
    ),
)
UNLUCKY = -13.0


class Track:
    """Notes the shapes of its batches, and takes a millisecond for each row."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []  # rows and steps
        self.cost: Callable[[int, int], None] = lambda rows, steps: None

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        x, k = inputs
        self.runs.append(x.shape[:2])
        self.cost(*x.shape[:2])
        if (x == UNLUCKY).any():
            raise RuntimeError("unlucky row")
        return track(x, k)


def track(x: Array, k: Array) -> list[Array]:
    """What the model computes."""
    return [
        (x.sum(2) * k[:, None]).astype(np.float32),
        np.ascontiguousarray(x[:, 1::2] > 4).astype(np.int16),
        x.astype(np.float64).mean((1, 2)),
    ]


def rows(count: int, steps: int, first: float = 0.0) -> list[Array]:
    """Whole numbers from `first` on, so that every sum is exact."""
    x = first + np.arange(count * steps * 2, dtype=np.float32).reshape(count, steps, 2)
    return [x, np.arange(count) + 1]


def on_cpu(compute: Compute, its: ModelSignature = TRACK) -> Passage:
    passage = Passage(Function(its, compute), BUCKETS)
    passage.latency.seed(0, passage.instance.warm_up(0, BUCKETS, 1))
    return passage


def on_cuda(compute: Compute, its: ModelSignature = TRACK) -> Passage:
    passage = CudaPassage(its, compute)
    passage.warm()
    passage.instance.settle()
    return passage


both = pytest.mark.parametrize("make", [on_cpu, on_cuda])
Make = Callable[..., AbstractContextManager[Passage]]


def check(answers: Sequence[object], *asked: Sequence[Array]) -> None:
    """Every request has its own right answer."""
    for answer, (x, k) in zip(answers, asked, strict=True):
        assert isinstance(answer, list), answer
        for got, wanted in zip(answer, track(x, k), strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)


@both
@settings(deadline=None, max_examples=40)
@given(requests=st.lists(st.tuples(st.integers(1, 3), st.integers(1, LONGEST)), min_size=1, max_size=8))
def test_mixed_shapes_each_get_their_own_answer(make: Make, requests: list[tuple[int, int]]) -> None:
    """Whatever has run in the same buffers before, in whatever order they come."""
    model = Track()
    asked = [rows(count, steps, 10 * at) for at, (count, steps) in enumerate(requests)]
    with make(model) as passage:
        check(passage.ask(*asked), *asked)
        check(passage.ask(*asked[::-1]), *asked[::-1])
        assert not passage.failures


@both
def test_a_batch_runs_in_groups_in_the_order_of_their_first_rows(make: Make) -> None:
    """Each in the smallest bucket that holds it."""
    model = Track()
    asked = [rows(1, 4), rows(2, 1), rows(2, 4, 50), rows(1, 6), rows(1, 1, 7)]
    with make(model) as passage:
        model.runs.clear()
        check(passage.ask(*asked), *asked)
        seen = [run for at, run in enumerate(model.runs) if at == 0 or run != model.runs[at - 1]]
    assert seen == [(4, 4), (4, 1), (1, 6)]


@both
def test_one_shape_runs_as_one_batch(make: Make) -> None:
    """In the bucket of the batch."""
    model = Track()
    asked = [rows(3, 5), rows(2, 5, 40)]
    with make(model) as passage:
        model.runs.clear()
        check(passage.ask(*asked), *asked)
        assert set(model.runs) == {(8, 5)}


@both
def test_padding_is_zeros(make: Make) -> None:
    """Also where a longer batch has been in the same memory: the row would make this one raise."""
    model = Track()
    with make(model) as passage:
        bad = rows(4, 6)
        bad[0][:] = UNLUCKY
        assert passage.ask(bad) == [Outcome.ERROR]
        asked = rows(3, 4)
        check(passage.ask(asked), asked)
        assert len(passage.failures) == 1


@both
def test_a_group_that_raises_is_taken_apart_alone(make: Make) -> None:
    """Rows of other shapes are run once, and of its own shape only the guilty one fails."""
    model = Track()
    bad = rows(1, 2)
    bad[0][0, 1, 0] = UNLUCKY
    asked = [rows(1, 5), rows(1, 2, 20), bad, rows(1, 2, 30), rows(2, 3, 40)]
    with make(model) as passage:
        model.runs.clear()
        answers = passage.ask(*asked)
        assert answers[2] is Outcome.ERROR
        check(answers[:2] + answers[3:], *asked[:2], *asked[3:])
        ((batch, error, extent),) = passage.failures
    assert (len(batch.slots), str(error)) == (6, "unlucky row")
    assert (extent.guilty, extent.undecided, extent.expired) == (1, 0, 0)
    assert len({run for run in model.runs if run[1] == 5}) == 1


def test_two_groups_that_raise_are_one_failure() -> None:
    """Told once, with the first error and the rows of both."""
    bad = [rows(1, 2), rows(2, 3), rows(1, 4)]
    bad[0][0][:] = bad[1][0][:] = UNLUCKY
    with on_cpu(Track()) as passage:
        answers = passage.ask(*bad)
        assert answers[:2] == [Outcome.ERROR, Outcome.ERROR]
        check(answers[2:], bad[2])
        ((_, _, extent),) = passage.failures
    assert extent.guilty == 3


@both
def test_a_row_that_is_not_finite_fails_alone(make: Make) -> None:
    """In an output of any shape."""
    with make(lambda inputs: track(inputs[0], inputs[1])) as passage:
        bad = rows(1, 4)
        bad[0][0, 3, 0] = np.inf
        asked = [rows(1, 4), bad, rows(1, 3)]
        answers = passage.ask(*asked)
        assert answers[1] is Outcome.NON_FINITE
        check([answers[0], answers[2]], asked[0], asked[2])


def test_bytes_behind_a_shorter_output_are_not_looked_at() -> None:
    """A slot keeps what a longer row left there: it is no part of this one."""
    with on_cpu(Track()) as passage:
        passage.arena.output_rows[:] = 0xFF  # NaN in every type
        asked = rows(2, 1)
        check(passage.ask(asked), asked)


def test_a_later_group_is_not_run_for_a_deadline_that_has_passed() -> None:
    """The groups before it took their time; of its own rows only the late one is left out."""
    model = Track()
    asked = [rows(1, 1), rows(1, 2), rows(1, 2, 30)]
    with on_cpu(model) as passage:
        model.cost = lambda rows, steps: passage.clock.advance(10 * MS)
        model.runs.clear()
        answers = passage.ask(*asked, timeouts_ns=[None, 5 * MS, 50 * MS])
    assert answers[1] is Outcome.EXPIRED
    check([answers[0], answers[2]], asked[0], asked[2])
    assert model.runs == [(1, 1), (1, 2)]


def test_what_groups_took_teaches_how_long_a_batch_takes() -> None:
    """All of them together: that is what the next one may take too."""
    model = Track()
    with on_cpu(model) as passage:
        model.cost = lambda rows, steps: passage.clock.advance(rows * MS)
        before = passage.latency.table(0)[2]
        for _ in range(64):
            passage.ask(rows(1, 1), rows(1, 2), rows(1, 3))
        after = passage.latency.table(0)[2]
    assert (before.median_ns, after.median_ns) == (0, 3 * MS)


# -- what a model returns -----------------------------------------------------------------------


def too_long(inputs: Sequence[Array]) -> Sequence[Array]:
    """Returns a step more than there are, for six steps one more than fit."""
    scaled, every, mean = track(*inputs)
    return [np.concatenate([scaled, scaled[:, :1]], 1), every, mean]


@both
def test_an_output_over_its_largest_shape_is_the_models_error(make: Make) -> None:
    """Nothing is written behind its place, and the instance goes on."""
    grows = False

    def compute(inputs: Sequence[Array]) -> Sequence[Array]:
        return too_long(inputs) if grows else track(*inputs)

    with make(compute) as passage:
        grows = True
        asked = [rows(2, 6), rows(1, 6), rows(1, 3)]
        answers = passage.ask(*asked)
        assert answers[:2] == [Outcome.ERROR, Outcome.ERROR]
        assert isinstance(answers[2], list)
        assert answers[2][0].shape == (1, 4)
        ((_, error, _),) = passage.failures
        assert str(error) == "m returns scaled as float32 [4, 7], its manifest says float32 [4, 0 to 6]"


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (too_long, r"m returns scaled as float32 \[1, 7\], its manifest says float32 \[1, 0 to 6\]"),
        (lambda inputs: track(*inputs)[:2], "m returns 2 outputs, its manifest names 3"),
        (
            lambda inputs: [*track(*inputs)[:2], inputs[0].mean((1, 2))],
            r"m returns mean as float32 \[1\], its manifest says float64 \[1\]",
        ),
    ],
)
def test_warm_up_finds_outputs_that_the_manifest_does_not_name(compute: Compute, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message), on_cpu(compute):
        pass


def test_warm_up_on_a_device_finds_an_output_that_is_too_long() -> None:
    """Also where the room of a larger batch would hold it."""
    message = r"m returns scaled as float32 \[1, 7\], its manifest says float32 \[1, 0 to 6\]"
    with pytest.raises(ModelUnusable, match=message), on_cuda(too_long):
        pass


@both
@pytest.mark.parametrize(("steps", "said"), [(1, r"\[1, 1, 2\]"), (LONGEST, r"\[1, 6, 2\]")])
def test_warm_up_runs_the_smallest_and_the_largest_shapes(make: Make, steps: int, said: str) -> None:
    """A model that does not bear one of them is not served."""

    def compute(inputs: Sequence[Array]) -> Sequence[Array]:
        if inputs[0].shape[1] == steps:
            raise ValueError("not so many")
        return track(*inputs)

    message = rf"m fails on 1 rows of zeros as x {said}, k \[1\]: not so many"
    with pytest.raises(ModelUnusable, match=message), make(compute):
        pass


def test_expectations_are_as_high_as_of_the_smallest_and_grow_as_of_the_largest() -> None:
    assert seeds({1: 1000, 2: 1500, 8: 9000}, {1: 10, 2: 10, 8: 11}) == {1: 10, 2: 15, 8: 90}
    # Noise: the smallest cannot really take longer.
    assert seeds({1: 10, 2: 12}, {1: 11, 2: 12}) == {1: 10, 2: 12}


# -- only on CUDA -------------------------------------------------------------------------------


def test_a_group_that_does_not_fit_the_device_runs_in_smaller_parts() -> None:
    """Groups of other shapes run as ever, and larger batches come no more."""
    asked = [rows(4, 6), rows(2, 1)]
    with CudaPassage(TRACK, Track()) as passage:
        passage.warm()

        def only_two(launched: int) -> None:
            if launched > 2:
                raise OutOfMemoryError("CUDA out of memory")

        passage.model.at_launch = only_two
        check(passage.ask(*asked), *asked)
        assert passage.model.launches == [4, 2, 2, 2]
        assert not passage.failures


def test_the_thread_of_an_instance_settles_every_size_in_both_extremes() -> None:
    model = Track()
    with CudaPassage(TRACK, model) as passage:
        passage.warm()
        passage.model.launches.clear()
        passage.instance.settle()
        assert passage.model.launches == [1, 1, 2, 2, 4, 4, 8, 8]
        assert {steps for _, steps in model.runs} == {1, LONGEST}


def test_nothing_is_captured_and_the_mapped_slab_is_not_read() -> None:
    with CudaPassage(TRACK, Track()) as passage:
        passage.warm()
        assert set(passage.programs().values()) == {"plain, by shape"}
        assert not passage.calls.graphs
