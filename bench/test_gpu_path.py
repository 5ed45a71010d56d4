"""The measuring loop of the GPU benchmark, over instances on the CPU: real feeders, rings and threads."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from bench import gpu_device, gpu_isolation, gpu_soak
from bench.gpu_feeder import Load
from bench.gpu_models import LstmShape, ModelFile, lstm, touchy
from bench.gpu_path import Crew, CrewFailed, Hands, Hire, Rig, Run, sizes_up_to, timing
from bench.gpu_results import Budget, Results
from bench.gpu_soak import poison_checks
from bench.gpu_target import Notebook, Wanted
from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array, DeviceLost, DeviceSettings, Runner, load_runner
from scheduler.policy import BatchPlan

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SHAPE = LstmShape(steps=3, features=4, layers=1, units=5)
OnFailure = Callable[[Batch, Exception, FailureExtent], None]


class CpuTarget:
    """Takes the place of a GPU."""

    def __init__(self, runner: Callable[[ModelFile], Runner]) -> None:
        self._runner = runner

    def hire(self, wanted: Wanted, notes: Notebook, limits: list[int | None]) -> Hire:
        del notes, limits
        runners = {at: self._runner(model) for at, model in enumerate(wanted.models)}

        def build(arena: Arena, dispatcher: Dispatcher, on_failure: OnFailure) -> Hands:
            instances = [
                CpuInstance(arena, dispatcher, runners, wanted.max_batch, MonotonicClock(), on_failure)
                for _ in range(wanted.anyone + wanted.reserved)
            ]
            return Hands(instances[: wanted.anyone], instances[wanted.anyone :])

        return build

    def let_go(self) -> None:
        return


def real(model: ModelFile) -> Runner:
    return load_runner(model.model_format, model.file, model.signature, DeviceSettings())


def instant(model: ModelFile) -> Runner:
    return FakeRunner(model.signature)


TINY = lstm("tiny", SHAPE)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    signature = TINY.signature
    with Rig(Dimensions(2, 2, 64, signature.input_row_bytes, signature.output_row_bytes)) as rig:
        yield rig


def crew_of(rig: Rig, runner: Callable[[ModelFile], Runner], *models: ModelFile, anyone: int = 1) -> Crew:
    wanted = Wanted(models, "fp32", 16, anyone=anyone)
    return Crew(rig, CpuTarget(runner).hire(wanted, Notebook(), []), len(models))


def test_batches_have_the_size_that_is_measured(rig: Rig) -> None:
    """On one stream and then on two, with real models."""
    with crew_of(rig, real, TINY, TINY, anyone=2) as crew:
        assert tuple(crew.warm_up((1, 4, 16), (1, 4, 16))) == (1, 4, 16)
        for streams in (1, 2):
            for size in (1, 16):
                found = crew.measure(size, streams, 0.1, 0.0)
                assert found.batches > 0
                assert 0 < found.p50_us <= found.p99_us <= found.max_us
                assert found.rows_per_s > 0
                assert {run.rows for run in crew._runs} == {size}
        assert not crew.failures


def test_rows_are_those_that_the_feeders_wrote(rig: Rig) -> None:
    """Read by the instance from the shared memory."""
    seen: list[float] = []

    def noting(model: ModelFile) -> Runner:
        def before(inputs: Sequence[Array]) -> None:
            seen.extend(inputs[0].reshape(len(inputs[0]), -1).std(axis=1).tolist())

        return FakeRunner(model.signature, before)

    with crew_of(rig, noting, TINY, TINY) as crew:
        crew.warm_up((1,), (1,))
        seen.clear()
        crew.measure(1, 1, 0.05, 0.0)
    assert seen
    assert all(0.3 < spread < 3 for spread in seen), "standard normal numbers spread by about one"


def test_poison_is_counted_apart_and_taken_out_again(rig: Rig) -> None:
    """NaN fails as such, a row that makes the model raise as an error, and every other row is answered."""
    shape = TINY.signature.inputs[0].shape
    with crew_of(rig, real, TINY, touchy((shape[0], shape[1]))) as crew:
        crew.warm_up((1, 4, 16), (1, 4, 16))
        crew.use(*[BatchPlan((1, 4, 16), (0,) * _ring.CLASSES, None)] * 2)
        crew.start(1)
        loads = [
            Load(0.3, outstanding=4, poison_every=10),
            Load(0.3, outstanding=4, model=1, poison_every=10, poison=13.0),
        ]
        fed, _ = crew.feed(*loads)
        assert [set(each.outcomes) for each in fed] == [{"RESULT"}, {"RESULT"}]
        assert [set(each.poisoned) for each in fed] == [{"NON_FINITE"}, {"ERROR"}]
        assert len(crew.failures) == sum(fed[1].poisoned.values())
        assert all(check.holds for check in poison_checks(fed))
        clean, _ = crew.feed(Load(0.1, outstanding=4), Load(0.1, outstanding=4, model=1))
        assert [set(each.outcomes) for each in clean] == [{"RESULT"}, {"RESULT"}]
        assert not any(each.poisoned for each in clean)
    assert not all(check.holds for check in poison_checks(clean)), "no poison: nothing was shown"


def test_an_open_load_is_sent_at_its_rate(rig: Rig) -> None:
    with crew_of(rig, instant, TINY, TINY) as crew:
        crew.warm_up((1,), (1,))
        crew.use(*[BatchPlan((1,), (0,) * _ring.CLASSES, None)] * 2)
        crew.start(1)
        fed, _ = crew.feed(Load(0.5, rate_per_s=100))
    assert 49 <= len(fed[0].latency_us) + fed[0].skipped <= 51
    assert fed[0].rows == len(fed[0].latency_us)


def test_a_load_that_is_not_noted_is_counted_all_the_same(rig: Rig) -> None:
    """What is noted of each batch and request would fill the memory in an hour."""
    with crew_of(rig, instant, TINY, TINY) as crew:
        crew.warm_up((1,), (1,))
        crew.use(*[BatchPlan((1,), (0,) * _ring.CLASSES, None)] * 2)
        crew.start(1)
        before = crew.batches()
        fed, runs = crew.feed(Load(0.1, outstanding=2, note_latency=False))
        assert (runs, fed[0].latency_us) == ([], [])
        assert crew.batches() - before == fed[0].outcomes["RESULT"] > 0


def test_an_instance_that_ends_is_told() -> None:
    """In the words of what ended it; nothing waits for ever."""

    def lost(model: ModelFile) -> Runner:
        def before(inputs: Sequence[Array]) -> None:
            if np.any(inputs[0]):
                raise DeviceLost("no device")

        return FakeRunner(model.signature, before)

    signature = TINY.signature
    dimensions = Dimensions(1, 1, 8, signature.input_row_bytes, signature.output_row_bytes)
    with Rig(dimensions) as rig, crew_of(rig, lost, TINY) as crew:
        crew.warm_up((1,))
        with pytest.raises(CrewFailed, match=r"a feeder has ended.*no device"):
            crew.measure(1, 1, 0.05, 0.0)


def test_timing_leaves_out_what_ran_before_it_had_settled() -> None:
    ms = 1_000_000
    runs = [Run(at * ms, (at + took) * ms, 4) for at, took in [(0, 50), (100, 1), (110, 2), (120, 3)]]
    found = timing(runs, 0.1)
    assert (found.batches, found.p50_us, found.max_us) == (3, 2000, 3000)
    assert found.rows_per_s == pytest.approx(12 / 0.023)
    assert timing([], 0.1).batches == 0


def test_sizes_are_the_powers_of_two() -> None:
    assert sizes_up_to(16) == (1, 2, 4, 8, 16)
    assert sizes_up_to(1) == (1,)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that takes minutes, in seconds."""
    monkeypatch.setattr(gpu_device, "LARGEST", 32)
    monkeypatch.setattr(gpu_device, "FEEDERS", 1)
    monkeypatch.setattr(gpu_device, "SECONDS", 0.02)
    monkeypatch.setattr(gpu_device, "SETTLE_S", 0.0)
    monkeypatch.setattr(gpu_isolation, "LARGEST", 4)
    monkeypatch.setattr(gpu_isolation, "BULK_FEEDERS", 1)


def test_device_part_runs_and_checks_its_bars(small: None) -> None:
    results = Results(None, {})
    gpu_device.measure(results, CpuTarget(instant), ["sp500_direction", "lstm_a"], Budget(10), quick=True)
    rows = results.rows("device")
    assert {row["model"] for row in rows} == {"sp500_direction", "lstm_a"}
    assert {row["precision"] for row in rows} == {"fp16", "fp32"}
    assert {row["streams"] for row in rows} == {1, 4}
    assert {row["wait"] for row in rows} == {"block", "spin"}
    assert len(results.as_json()["parts"]["device"]["checks"]) == 2


def test_device_part_says_what_it_has_no_time_for(small: None) -> None:
    results = Results(None, {})
    gpu_device.measure(results, CpuTarget(instant), ["lstm_a"], Budget(0), quick=True)
    assert results.rows("device") == []
    assert len(results.as_json()["parts"]["device"]["notes"]) == 2


def test_isolation_part_runs(small: None) -> None:
    """With a runner that takes its time, so that bulk saturates it."""

    def slow(model: ModelFile) -> Runner:
        return FakeRunner(model.signature, lambda inputs: time.sleep(0.0005 * len(inputs[0])))

    results = Results(None, {})
    assert gpu_isolation.measure(results, CpuTarget(slow), 100, Budget(10), seconds=0.2) == 0
    rows = results.rows("isolation")
    assert [row["situation"] for row in rows][:2] == ["alone", "one stream"]
    assert len(rows) == len(gpu_isolation.SITUATIONS)
    assert all(row["real-time windows"] > 0 for row in rows)
    assert rows[1]["real-time p50_us"] > rows[0]["real-time p50_us"]


@pytest.mark.parametrize(("grown", "holds"), [(0, True), (1, False)])
def test_soak_part_runs_and_sees_what_grows(grown: int, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With poison for both models; tensors must not grow by a single byte."""
    monkeypatch.setattr(gpu_soak, "LARGEST", 16)
    monkeypatch.setattr(gpu_soak, "POISON_EVERY", 20)
    looks = iter([dict.fromkeys(gpu_soak.GROWTH_BYTES, 5), dict.fromkeys(gpu_soak.GROWTH_BYTES, 5 + grown)])
    results = Results(None, {})
    target = CpuTarget(lambda model: real(model) if model.name == "touchy" else instant(model))
    failed = gpu_soak.steady(results, target, lambda: next(looks), 1.0)
    assert failed == (0 if holds else 1)
    (row,) = results.rows("soak")
    assert row["batches"] > 0
    assert row["bisected"] > 0
    checks = {check["name"]: check["holds"] for check in results.as_json()["parts"]["soak"]["checks"]}
    assert checks.pop("growth of allocated") is holds
    assert all(checks.values()), checks
