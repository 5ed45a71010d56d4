"""CPU instances: warm-up, and batches through a model and back."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from scheduler.executor.bisection import BUDGET_NS, FailureExtent
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array, DeviceLost, ModelUnusable
from scheduler.latency import WINDOW
from scheduler.partition import Outcome
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import Answer, Compute, Function, Passage, signature

MS = 1_000_000
NAN = float("nan")


def double(inputs: Sequence[Array]) -> list[Array]:
    """y = 2x."""
    return [2 * inputs[0]]


def passage(compute: Compute = double, buckets: tuple[int, ...] = (1, 2, 4, 8), **its: object) -> Passage:
    """With a model that is this function."""
    return Passage(Function(signature(**its), compute), buckets)  # type: ignore[arg-type]


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
    """Whatever the model does: its items end once, it is reported once, the instance goes on."""
    models = [broken, double]

    def first_broken(inputs: Sequence[Array]) -> Sequence[Array]:
        return models[0](inputs)

    with passage(first_broken) as run:
        assert run.ask([np.ones((2, 2))]) == [Outcome.ERROR]
        ((batch, error, extent),) = run.failures
        assert len(batch.slots) == 2
        assert isinstance(error, Exception)
        assert extent == FailureExtent(guilty=2, undecided=0, expired=0, runs=2)
        models.pop(0)
        (answer,) = run.ask([np.ones((2, 2))])
        assert not isinstance(answer, Outcome)


def test_times_of_a_batch_are_those_of_the_model() -> None:
    """From its start to its end."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(7 * MS)
        return double(inputs)

    with passage(slow) as run:
        run.ask([np.ones((4, 2))])
    assert run.compute_ns == [7 * MS]


# -- batches that raise -------------------------------------------------------------------------


def picky(inputs: Sequence[Array]) -> list[Array]:
    """y = 2x, unless any row, padding or not, has something over 1000."""
    if (inputs[0] > 1000).any():
        raise RuntimeError("more than 1000")
    return double(inputs)


def row(value: float) -> list[Array]:
    """A request of one row."""
    return [np.array([[value, -value]])]


def first(answer: Answer) -> float:
    """What came back for `row`, halved."""
    assert not isinstance(answer, Outcome)
    return float(answer[0][0, 0] / 2)


@pytest.mark.parametrize("count", range(1, 7))
def test_only_the_guilty_rows_of_a_batch_fail(count: int) -> None:
    """Every set of guilty rows: the others get what the model makes of their own inputs."""
    sizes: set[int] = set()

    def look(inputs: Sequence[Array]) -> list[Array]:
        sizes.add(len(inputs[0]))
        return picky(inputs)

    with passage(look) as run:
        run.instance.warm_up(0, (1, 2, 4, 8), rounds=1)
        for guilty in itertools.product([False, True], repeat=count):
            values = [index + 1 + 2000 * bad for index, bad in enumerate(guilty)]
            answers = run.ask(*map(row, values))
            for value, bad, answer in zip(values, guilty, answers, strict=True):
                assert (answer is Outcome.ERROR) if bad else (first(answer) == value)
            if any(guilty):
                batch, error, extent = run.failures.pop()
                assert (len(batch.slots), str(error)) == (count, "more than 1000")
                assert (extent.guilty, extent.undecided, extent.expired) == (sum(guilty), 0, 0)
            assert run.failures == []
    assert sizes == {1, 2, 4, 8}


def test_guilty_row_is_no_padding_of_another_part() -> None:
    """Nor of the next batch: the smallest bucket has four rows, each part and that batch fill fewer."""
    with passage(picky, buckets=(4, 8)) as run:
        run.instance.warm_up(0, (4, 8), rounds=1)
        answers = run.ask(*map(row, [1, 2, 9003, 4, 5]))
        assert answers[2] is Outcome.ERROR
        assert [first(answer) for index, answer in enumerate(answers) if index != 2] == [1, 2, 4, 5]
        assert first(run.ask(row(6))[0]) == 6


def test_padding_of_a_part_is_what_the_model_was_warmed_up_on() -> None:
    """Zeros, in every input, however many rows the part before it had."""
    k = TensorSpec("k", DataType.INT64, (3,))
    parts: list[tuple[int, int]] = []

    def look(inputs: Sequence[Array]) -> list[Array]:
        x, counters = inputs
        parts.append((int(np.count_nonzero(x[:, 0])), int(np.count_nonzero(counters[:, 2]))))
        return picky(inputs)

    its = signature(inputs=(TensorSpec("x", DataType.FP32, (2,)), k))
    with Passage(Function(its, look), (8,)) as run:
        answers = run.ask(*[[np.array([[x, 1]]), np.array([[1, 2, 3]])] for x in (1, 2, 3, 4, 9005)])
    assert [answer is Outcome.ERROR for answer in answers] == [False] * 4 + [True]
    assert parts == [(5, 5), (4, 4), (1, 1)]


def test_parts_run_in_the_batchs_bucket_where_no_other_was_warmed_up() -> None:
    """The model sees no size that it has not seen."""
    sizes: list[int] = []

    def look(inputs: Sequence[Array]) -> list[Array]:
        sizes.append(len(inputs[0]))
        return picky(inputs)

    with passage(look) as run:
        run.ask(*map(row, [1, 2, 9003]))
    assert sizes == [4, 4, 4]


def test_request_fails_for_any_of_its_rows() -> None:
    """The requests on both sides of it do not."""
    with passage(picky) as run:
        answers = run.ask([np.ones((2, 2))], [np.array([[1, 1], [2, 2], [9999, 4]])], [np.ones((3, 2))])
    assert answers[1] is Outcome.ERROR
    assert [first(answers[0]), first(answers[2])] == [1, 1]
    assert run.failures[0][2].guilty == 1


def test_row_that_answers_nan_beside_one_that_raises() -> None:
    """Each fails for its own reason."""
    with passage(picky) as run:
        answers = run.ask(*map(row, [1, NAN, 9003, 4]))
    assert answers[1:3] == [Outcome.NON_FINITE, Outcome.ERROR]
    assert [first(answers[0]), first(answers[3])] == [1, 4]


def test_wrong_output_of_a_few_rows_is_theirs_alone() -> None:
    """A model that answers in another shape for some inputs."""

    def narrow(inputs: Sequence[Array]) -> list[Array]:
        (y,) = double(inputs)
        return [y[:, :1].copy()] if (y > 1000).any() else [y]

    with passage(narrow) as run:
        answers = run.ask(*map(row, [1, 9002, 3]))
    assert answers[1] is Outcome.ERROR
    assert [first(answers[0]), first(answers[2])] == [1, 3]


def test_model_that_leaves_rows_out_gives_nobody_the_row_of_another() -> None:
    """Three rows in a bucket of four, and the model drops the first: what is left would be enough."""

    def drop(inputs: Sequence[Array]) -> list[Array]:
        x = inputs[0]
        return [2 * x[x[:, 0] != 13]]

    with passage(drop) as run:
        run.instance.warm_up(0, (1, 2, 4), rounds=1)
        answers = run.ask(*map(row, [13, 2, 3]))
    assert answers[0] is Outcome.ERROR
    assert [first(answer) for answer in answers[1:]] == [2, 3]
    assert str(run.failures[0][1]) == "y has 3 rows, the batch has 4"


def test_row_past_its_deadline_is_not_run_again() -> None:
    """A run takes 7 ms: the batch is over by 7, its first part by 14, when the second one has expired."""
    parts: list[list[float]] = []

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(7 * MS)
        parts.append(inputs[0][:, 0].tolist())
        return picky(inputs)

    with passage(slow) as run:
        run.instance.warm_up(0, (1, 2, 4), rounds=1)
        parts.clear()
        answers = run.ask(*map(row, [9001, 2, 3, 4]), timeouts_ns=[None, None, 13 * MS, 15 * MS])
    assert answers[0] is Outcome.ERROR
    assert answers[2] is Outcome.EXPIRED
    assert [first(answers[1]), first(answers[3])] == [2, 4]
    assert parts == [[9001, 2, 3, 4], [9001, 2], [4], [9001], [2]]
    assert run.failures[0][2] == FailureExtent(guilty=1, undecided=0, expired=1, runs=4)


def test_search_gives_up_so_that_others_need_not_wait() -> None:
    """A run takes half the budget: two parts are run, and what they leave open fails."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(BUDGET_NS // 2)
        return picky(inputs)

    with passage(slow) as run:
        started_ns = run.clock.now_ns()
        answers = run.ask(*map(row, [9001, 2, 3, 4]))
        assert run.clock.now_ns() - started_ns == BUDGET_NS * 3 // 2
    assert answers[:2] == [Outcome.ERROR] * 2
    assert [first(answer) for answer in answers[2:]] == [3, 4]
    assert run.failures[0][2] == FailureExtent(guilty=0, undecided=2, expired=0, runs=2)


def test_undecided_row_is_no_padding_of_the_next_batch() -> None:
    """The last run before time is up has a bad row, in a place that the next batch does not fill."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(BUDGET_NS)
        return picky(inputs)

    with passage(slow, buckets=(4,)) as run:
        assert run.ask(*map(row, [1, 9002, 3, 4])) == [Outcome.ERROR] * 4
        assert first(run.ask(row(6))[0]) == 6


def test_compute_of_a_batch_that_raised_is_that_of_all_its_runs() -> None:
    """From the start of the first to the end of the last: the whole, one half, and two single rows."""

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(7 * MS)
        return picky(inputs)

    with passage(slow) as run:
        run.ask(*map(row, [1, 2, 3, 9004]))
    assert run.compute_ns == [4 * 7 * MS] * 4


@pytest.mark.parametrize("guilty", [True, False])
def test_batch_that_raised_says_nothing_about_how_long_one_takes(guilty: bool) -> None:
    """Whether a row is to blame, or all of them have results: it fails now and then, and no outcome tells."""
    runs = itertools.count()

    def slow(inputs: Sequence[Array]) -> list[Array]:
        run.clock.advance(7 * MS)
        if next(runs) % 3 == 0:  # the batch, and then its two rows
            raise RuntimeError("now and then")
        return picky(inputs)

    with passage(slow) as run:
        run.latency.seed(0, dict.fromkeys((1, 2, 4, 8), MS))
        for _ in range(WINDOW):
            answers = run.ask(row(1), row(9002 if guilty else 2))
            assert (answers[1] is Outcome.ERROR) == guilty
        assert len(run.failures) == WINDOW
        assert {known.median_ns for known in run.latency.table(0)} == {MS}
        next(runs)  # the next one does not raise, and teaches
        for _ in range(WINDOW):
            run.ask(row(1))
            next(runs)
            next(runs)
        assert {known.median_ns for known in run.latency.table(0)} == {7 * MS}


@pytest.mark.parametrize("lost_in", [1, 2, 3])
def test_lost_device_ends_the_engine_and_not_the_items(lost_in: int) -> None:
    """In the run of the batch or in that of a part: nothing is handed back, and no row is blamed."""
    runs: list[int] = []

    def lose(inputs: Sequence[Array]) -> list[Array]:
        runs.append(len(inputs[0]))
        if len(runs) == lost_in:
            raise DeviceLost("illegal address")
        return picky(inputs)

    with passage(lose) as run, pytest.raises(DeviceLost, match="illegal address"):
        run.ask(*map(row, [9001, 2, 3, 4]))
    assert len(runs) == lost_in
    assert run.partition.drain() == 0
    assert run.failures == []


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
