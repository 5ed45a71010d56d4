"""CPU instances: warm-up, and batches through a model and back."""

from collections.abc import Sequence

import numpy as np
import pytest

from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array, ModelUnusable
from scheduler.partition import Outcome
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import Compute, Function, Passage, signature

MS = 1_000_000
NAN = float("nan")


def double(inputs: Sequence[Array]) -> list[Array]:
    """y = 2x."""
    return [2 * inputs[0]]


def passage(compute: Compute = double, **its: object) -> Passage:
    """With a model that is this function."""
    return Passage(Function(signature(**its), compute))  # type: ignore[arg-type]


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_type", DataType)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_every_type_and_shape_passes_unchanged(data_type: DataType, shape: tuple[int, ...]) -> None:
    """Bit by bit, several rows, beside another tensor on each side."""
    spec, other = TensorSpec("x", data_type, shape), TensorSpec("k", DataType.INT8, (3,))
    its = signature(inputs=(spec, other), outputs=(other, spec), finite_outputs=False)
    noise = np.random.default_rng(1)
    x = noise.integers(0, 2, (5, *shape)) if data_type is DataType.BOOL else noise.normal(0, 50, (5, *shape))
    x = np.abs(x).astype(data_type.dtype)
    k = noise.integers(-128, 127, (5, 3), np.int8)
    with Passage(Function(its, lambda inputs: [inputs[1], inputs[0]])) as run:
        (answer,) = run.ask([x, k])
    assert not isinstance(answer, Outcome)
    assert (answer[0].tobytes(), answer[1].tobytes()) == (k.tobytes(), x.tobytes())


def test_model_gets_whole_buckets_of_contiguous_rows() -> None:
    """Three rows run as four: the model sees only sizes that it was warmed up with."""
    seen: list[tuple[tuple[int, ...], bool]] = []

    def look(inputs: Sequence[Array]) -> list[Array]:
        seen.append((inputs[0].shape, inputs[0].flags.c_contiguous))
        return double(inputs)

    with passage(look) as run:
        run.ask([np.ones((3, 2))])
        run.ask([np.ones((8, 2))])
    assert seen == [((4, 2), True), ((8, 2), True)]


def test_padding_does_not_reach_the_answers() -> None:
    """What an earlier batch left in the rows past this one's is neither answered nor judged."""
    with passage() as run:
        (before,) = run.ask([np.array([[1, 1], [2, 2], [3, 3], [NAN, 7]])])
        (after,) = run.ask([np.array([[4, 4], [5, 5], [6, 6]])])
    assert before is Outcome.NON_FINITE
    assert not isinstance(after, Outcome)
    np.testing.assert_array_equal(after[0], [[8, 8], [10, 10], [12, 12]])


def test_requests_that_share_a_batch_get_their_own_rows() -> None:
    """Of one, three and two rows."""
    arrays = [np.arange(2 * rows).reshape(rows, 2) + 100 * rows for rows in (1, 3, 2)]
    with passage() as run:
        answers = run.ask(*[[array] for array in arrays])
    for answer, array in zip(answers, arrays, strict=True):
        assert not isinstance(answer, Outcome)
        np.testing.assert_array_equal(answer[0], 2 * array)


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_output_that_is_not_finite_fails_its_request_alone(value: float, place: int) -> None:
    """In whichever output and element; others in the batch are answered."""
    outputs = (TensorSpec("y", DataType.FP64, ()), TensorSpec("z", DataType.FP32, (2,)))

    def spoil(inputs: Sequence[Array]) -> list[Array]:
        x = inputs[0]
        both = np.concatenate([x, x[:, :1]], axis=1).astype(np.float64)
        both[x[:, 0] == 13, place] = value
        return [both[:, 0].copy(), both[:, 1:].astype(np.float32)]

    with passage(spoil, outputs=outputs) as run:
        good, bad, late = run.ask([np.ones((1, 2))], [np.array([[1, 1], [13, 1]])], [np.full((1, 2), 3)])
    assert bad is Outcome.NON_FINITE
    assert not isinstance(good, Outcome)
    assert not isinstance(late, Outcome)


def test_model_that_may_answer_nan_does() -> None:
    """`finite_outputs = false`."""
    with passage(lambda inputs: [np.full_like(inputs[0], NAN)], finite_outputs=False) as run:
        (answer,) = run.ask([np.ones((1, 2))])
    assert not isinstance(answer, Outcome)
    assert np.isnan(answer[0]).all()


def test_integers_are_finite() -> None:
    """Whatever their bits."""
    outputs = (TensorSpec("y", DataType.UINT8, (2,)),)
    with passage(lambda inputs: [np.full(inputs[0].shape, 255, np.uint8)], outputs=outputs) as run:
        (answer,) = run.ask([np.ones((1, 2))])
    assert not isinstance(answer, Outcome)


@pytest.mark.parametrize(
    "broken",
    [
        lambda inputs: [],
        lambda inputs: [2 * inputs[0]] * 2,
        lambda inputs: [inputs[0][:, :1].copy()],
        lambda inputs: [inputs[0][:-1]],
        lambda inputs: 1 / 0,
    ],
    ids=["no outputs", "too many outputs", "narrow rows", "a row too few", "raises"],
)
def test_batch_that_goes_wrong_after_warm_up_fails_and_the_next_does_not(broken: Compute) -> None:
    """Whatever it is that the model does: its items end once, it is reported once, the instance goes on."""
    models = [broken, double]

    def first_broken(inputs: Sequence[Array]) -> Sequence[Array]:
        return models[0](inputs)

    with passage(first_broken) as run:
        assert run.ask([np.ones((2, 2))]) == [Outcome.ERROR]
        ((batch, error),) = run.failures
        assert len(batch.slots) == 2
        assert isinstance(error, Exception)
        models.pop(0)
        (answer,) = run.ask([np.ones((2, 2))])
        assert not isinstance(answer, Outcome)


def test_failed_batch_leaves_nothing_for_the_next_to_fail_on() -> None:
    """Its bad row is padding of a later, smaller batch in the same bucket, whose items are all good."""

    def picky(inputs: Sequence[Array]) -> list[Array]:
        if (inputs[0] > 1000).any():
            raise RuntimeError("more than 1000")
        return double(inputs)

    with passage(picky) as run:
        assert run.ask([np.array([[1, 1], [2, 2], [3, 3], [9999, 4]])]) == [Outcome.ERROR]
        (answer,) = run.ask([np.array([[1, 1], [2, 2], [3, 3]])])
    assert not isinstance(answer, Outcome)


def test_times_of_a_batch_are_those_of_the_model() -> None:
    """From dispatch to the end of the computation, also where it fails."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(7 * MS)
        return double(inputs)

    with passage(slow) as run:
        run.ask([np.ones((4, 2))])
        assert run.partition.item_cost_ns == pytest.approx(7 * MS / 4 / 16)


# -- warm-up ------------------------------------------------------------------------------------


def test_warm_up_runs_every_bucket_as_often_as_it_should() -> None:
    """On rows of zeros, of every size that will be run."""
    sizes: list[int] = []

    def look(inputs: Sequence[Array]) -> list[Array]:
        assert not inputs[0].any()
        sizes.append(len(inputs[0]))
        return double(inputs)

    with passage(look) as run:
        measured = run.instance.warm_up(0, (1, 2, 8), rounds=3)
    assert sizes == [1, 1, 1, 2, 2, 2, 8, 8, 8]
    assert measured.keys() == {1, 2, 8}


@pytest.mark.parametrize(
    ("took_ms", "measured_ms"),
    [([90, 80, 5, 1, 3], 3), ([90, 80, 4], 4), ([90, 2], 2), ([90], 90), ([9, 9, 1, 2, 3, 4], 2.5)],
)
def test_warm_up_measures_the_median_of_the_later_rounds(took_ms: list[int], measured_ms: float) -> None:
    """The first two compile; with fewer rounds than that, the last one has to do."""
    times = iter(took_ms)

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(next(times) * MS)
        return double(inputs)

    with passage(slow) as run:
        assert run.instance.warm_up(0, (4,), rounds=len(took_ms)) == {4: measured_ms * MS}


OUTPUTS = (TensorSpec("y", DataType.FP32, (2,)), TensorSpec("n", DataType.INT64, ()))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([np.zeros((2, 2), "f4")], "m returns 1 outputs, its manifest names 2"),
        ([np.zeros((2, 2), "f4")] * 3, "m returns 3 outputs, its manifest names 2"),
        (
            [np.zeros((2, 3), "f4"), np.zeros(2, "i8")],
            "m returns y as float32 [2, 3], its manifest says float32 [2, 2]",
        ),
        (
            [np.zeros((2, 2), "f8"), np.zeros(2, "i8")],
            "m returns y as float64 [2, 2], its manifest says float32 [2, 2]",
        ),
        (
            [np.zeros((2, 2), "f4"), np.zeros((2, 1), "i8")],
            "m returns n as int64 [2, 1], its manifest says int64 [2]",
        ),
        (
            [np.zeros((1, 2), "f4"), np.zeros(2, "i8")],
            "m returns y as float32 [1, 2], its manifest says float32 [2, 2]",
        ),
    ],
)
def test_warm_up_refuses_what_is_not_in_the_manifest(answer: list[Array], message: str) -> None:
    """Count, shape, type and batch dimension of the outputs, in one line."""
    with passage(lambda inputs: answer, outputs=OUTPUTS) as run, pytest.raises(ModelUnusable) as refused:
        run.instance.warm_up(0, (2,), rounds=1)
    assert str(refused.value) == message


def test_warm_up_refuses_a_model_that_raises() -> None:
    """It says with how many rows, and what the model said."""

    def picky(inputs: Sequence[Array]) -> list[Array]:
        if len(inputs[0]) == 4:
            raise RuntimeError("not four")
        return double(inputs)

    with passage(picky) as run, pytest.raises(ModelUnusable, match=r"^m fails on 4 rows of zeros: not four$"):
        run.instance.warm_up(0, (1, 2, 4), rounds=2)


# -- the fake -----------------------------------------------------------------------------------


def test_fake_runner_answers_means_in_every_shape_and_type() -> None:
    """Of the first input's rows; and says beforehand what it got."""
    its = signature(
        inputs=(TensorSpec("x", DataType.INT16, (2, 2)), TensorSpec("k", DataType.FP64, ())),
        outputs=(TensorSpec("a", DataType.FP32, ()), TensorSpec("b", DataType.INT8, (2, 1))),
    )
    seen: list[int] = []
    with Passage(FakeRunner(its, lambda inputs: seen.append(len(inputs)))) as run:
        run.instance.warm_up(0, (1, 2), rounds=1)
        (answer,) = run.ask([np.array([[[1, 3], [5, 7]], [[0, 0], [0, -8]]]), np.zeros(2)])
    assert not isinstance(answer, Outcome)
    a, b = answer
    np.testing.assert_array_equal(a, [4, -2])
    np.testing.assert_array_equal(b, [[[4], [4]], [[-2], [-2]]])
    assert set(seen) == {2}
