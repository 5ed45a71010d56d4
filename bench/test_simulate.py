"""The simulator: reproducible, in agreement with queueing theory, and nothing gets lost in it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench import simulate as command
from bench.arrivals import Batches, Constant, MarketOpen, OnOff, Poisson, Process, Trace
from bench.batch_times import BatchTimes, batch_times
from bench.costs import Device, HypotheticalCpu, HypotheticalGpu
from bench.scenario import Scenario, load_scenario, names
from bench.simulation import draw_arrivals, simulate
from bench.simulation_report import ClassSummary, Summary, summarise, table

BULK = {"priority": "background_tasks", "arrivals": {"process": "poisson", "rate_per_s": 2000.0}}


def scenario(**changes: Any) -> Scenario:
    """Two classes on the hypothetical CPU, about half of what it can do."""
    fields: dict[str, Any] = {
        "description": "of a test",
        "device": {"cost": {"model": "cpu"}},
        "streams": [
            {"priority": "real_time_trading", "arrivals": {"process": "poisson", "rate_per_s": 1000.0}},
            {"priority": "background_tasks", "arrivals": {"process": "poisson", "rate_per_s": 1500.0}},
        ],
    }
    return Scenario.model_validate(fields | changes)


def one_server(rate_per_s: float, *, noise: float = 0.0) -> Scenario:
    """A queue of the textbook: one server, one customer at a time, 1 ms each."""
    return scenario(
        settings={"scheduler": {"max_batch_size": 1, "early_refusal": False}},
        device={
            "cost": {"model": "affine", "launch_us": 0, "item_us": 1000},
            "noise": noise,
            "gap_us": 0,
            "wake_us": 0,
        },
        streams=[
            {
                "priority": "real_time_trading",
                "arrivals": {"process": "poisson", "rate_per_s": rate_per_s},
                "timeout_ms": 10_000,
            }
        ],
    )


def run(case: Scenario, replicas: int = 1, seconds: float = 1.0, seed: int = 0) -> Summary:
    return summarise(simulate(case, replicas, seconds, seed), case.classes)


def of(summary: Summary, name: str) -> ClassSummary:
    return next(part for part in summary.classes if part.name == name)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_server_waits_as_long_as_theory_says(noise: float) -> None:
    """Pollaczek and Khinchine: rate * E[s²] / 2 (1 - load); the first case is M/D/1."""
    rate_per_s, seconds = 500.0, 60.0
    mean_s = 1e-3 * np.exp(noise**2 / 2)  # of a log-normal with median 1 ms
    square_s2 = 1e-6 * np.exp(2 * noise**2)
    result = simulate(one_server(rate_per_s, noise=noise), 1, seconds, seed=4)
    theory_s = rate_per_s * square_s2 / (2 * (1 - rate_per_s * mean_s))
    assert result.wait_ns.mean() / 1e9 == pytest.approx(theory_s, rel=0.05)
    assert result.busy_ns / (seconds * 1e9) == pytest.approx(rate_per_s * mean_s, rel=0.02)
    assert result.batches == result.items == len(result.wait_ns)


def test_the_same_seed_gives_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit of the JSON; another seed gives others."""

    def written(seed: int) -> str:
        path = tmp_path / "figures.json"
        arguments = ["bursts", "--seconds", "0.5", "--replicas", "1", "3", "--json", str(path)]
        monkeypatch.setattr(sys, "argv", ["simulate", *arguments, "--seed", str(seed)])
        assert command.main() == 0
        return path.read_text()

    first = written(1)
    assert written(1) == first
    assert json.loads(written(2))["runs"] != json.loads(first)["runs"]


def test_arrivals_do_not_depend_on_the_replicas() -> None:
    """Numbers of replicas are compared under the very same load."""
    one, many = (simulate(scenario(), replicas, 0.5, seed=3).arrivals for replicas in (1, 4))
    assert np.array_equal(one.at_ns, many.at_ns)
    assert np.array_equal(one.class_index, many.class_index)


@pytest.mark.parametrize("name", names())
def test_every_request_ends_once(name: str) -> None:
    """In every scenario that has a name, with too few replicas and with enough."""
    case = load_scenario(name)
    for replicas in (1, 12):
        for part in run(case, replicas, seconds=0.2).classes:
            # `Replica.close` has accounted for every item; these are requests.
            assert part.goodput_per_s <= part.results_per_s <= part.offered_per_s
            assert part.offered >= sum(part.refused.values()) + part.missed


def test_an_overloaded_replica_refuses_or_drops_what_it_cannot_do() -> None:
    """Three times too much: results are what one replica can do, everything else has a named end."""
    case = load_scenario("flood")
    result = simulate(case, 1, 2.0, seed=0)
    everything = of(summarise(result, case.classes), "all")
    assert everything.refused
    assert 3000 < everything.results_per_s < 5000  # 16 items in 3.2 ms at best
    assert result.busy_ns / 2e9 > 0.9
    assert set(result.outcome.tolist()) <= {1, 4, 7}  # RESULT, EXPIRED, refused


def test_more_replicas_wait_less_and_answer_more() -> None:
    """Under one load."""
    few, many = (of(run(load_scenario("flood"), replicas), "all") for replicas in (1, 8))
    assert many.goodput_per_s > 2 * few.goodput_per_s
    assert many.wait_p99_ms is not None
    assert few.wait_p99_ms is not None
    assert many.wait_p99_ms < few.wait_p99_ms


def test_a_balancer_that_looks_beats_one_that_takes_turns() -> None:
    """Requests of very different sizes at two thirds of what four replicas can do."""
    big_and_small = [{**BULK, "rows": [1, 1, 1, 64], "arrivals": {"process": "poisson", "rate_per_s": 800.0}}]
    waits = [
        of(run(scenario(streams=big_and_small, balancer=name), 4, 3.0), "background_tasks").wait_p99_ms
        for name in ("least_outstanding", "round_robin")
    ]
    assert None not in waits
    assert waits[0] < 0.9 * waits[1]  # type: ignore[operator]


def test_a_reserved_instance_keeps_urgent_work_from_waiting_for_bulk() -> None:
    """Two instances under endless bulk, without and with one of them reserved."""
    streams = [
        {"priority": "real_time_trading", "arrivals": {"process": "poisson", "rate_per_s": 100.0}},
        {**BULK, "arrivals": {"process": "poisson", "rate_per_s": 20_000.0}},
    ]
    waits = []
    for reserved in (0, 1):
        settings = {"executor": {"instances": 2}, "scheduler": {"reserved_instances": reserved}}
        part = of(run(scenario(settings=settings, streams=streams), seconds=2.0), "real_time_trading")
        waits.append(part.wait_p99_ms)
    assert None not in waits
    assert waits[1] < 0.5 * waits[0]  # type: ignore[operator]


def test_deadlines_are_those_of_stream_or_class() -> None:
    """A stream's own timeout goes before the default of its class."""
    own = {"priority": "high", "arrivals": {"process": "poisson", "rate_per_s": 100.0}, "timeout_ms": 7}
    arrivals = draw_arrivals(scenario(streams=[own, BULK]), 0.5, seed=0)
    timeouts_ms = (arrivals.deadline_ns - arrivals.at_ns) / 1e6
    assert set(timeouts_ms[arrivals.class_index == 0]) == {7.0}
    assert set(timeouts_ms[arrivals.class_index == 4]) == {60_000.0}


@pytest.mark.parametrize(
    ("process", "per_s"),
    [
        (Constant(process="constant", rate_per_s=200), 200),
        (Poisson(process="poisson", rate_per_s=200), 200),
        (OnOff(process="on_off", on_rate_per_s=1000, off_rate_per_s=100, on_s=0.1, off_s=0.3), 325),
        (Batches(process="batches", batches_per_s=20, size=10, spread_s=0.02), 200),
    ],
)
def test_a_process_keeps_its_rate(process: Process, per_s: float) -> None:
    """In the long run; ascending, within the run."""
    at_s = process.draw(np.random.default_rng(5), 2000.0)
    assert len(at_s) / 2000 == pytest.approx(per_s, rel=0.05)
    assert (np.diff(at_s) >= 0).all()
    assert at_s.min() >= 0
    assert at_s.max() < 2000


def test_bursts_are_burstier_than_independent_callers() -> None:
    """Variance over mean of the counts per 50 ms: 1 for Poisson, far more for bursts."""

    def dispersion(process: Process) -> float:
        counts, _ = np.histogram(process.draw(np.random.default_rng(6), 100.0), bins=2000, range=(0, 100))
        return float(counts.var() / counts.mean())

    assert dispersion(Poisson(process="poisson", rate_per_s=400)) == pytest.approx(1, abs=0.15)
    assert dispersion(OnOff(process="on_off", on_rate_per_s=1600, on_s=0.1, off_s=0.3)) > 10
    assert dispersion(Batches(process="batches", batches_per_s=4, size=100)) > 10


def test_the_open_jumps_and_decays_to_its_plateau() -> None:
    """Rates before the open, right after it, and long after it."""
    process = MarketOpen(
        process="market_open", before_per_s=500, peak_per_s=20_000, plateau_per_s=2000, open_s=2, decay_s=1
    )
    at_s = process.draw(np.random.default_rng(7), 20.0)

    def rate(start: float, end: float) -> float:
        return float(((at_s >= start) & (at_s < end)).sum() / (end - start))

    assert rate(0, 2) == pytest.approx(500, rel=0.1)
    assert rate(2, 2.1) == pytest.approx(2000 + 18_000 * (1 - np.exp(-0.1)) / 0.1, rel=0.1)
    assert rate(10, 20) == pytest.approx(2000, rel=0.05)


def test_a_trace_is_read_by_class(tmp_path: Path) -> None:
    """Instants from any start, or intervals; comments and empty lines are skipped."""
    file = tmp_path / "trace.csv"
    file.write_text("# recorded\n100.0,high\n100.5,low\n\n101.5,high\n")
    rng = np.random.default_rng(0)
    instants = Trace(process="trace", file=file)
    assert instants.draw(rng, 10).tolist() == [0.0, 0.5, 1.5]
    assert instants.model_copy(update={"only_class": "high"}).draw(rng, 1.2).tolist() == [0.0]
    file.write_text("0.5\n0.25\n0.25\n")
    assert Trace(process="trace", file=file, holds="intervals").draw(rng, 10).tolist() == [0.5, 0.75, 1.0]
    file.write_text("soon\n")
    with pytest.raises(ValueError, match="'soon' must be seconds"):
        instants.draw(rng, 10)


def test_presets_cost_what_they_say() -> None:
    """Milliseconds of one window and of sixteen."""
    cpu, gpu = HypotheticalCpu(model="cpu"), HypotheticalGpu(model="gpu")
    assert [cpu.samples_us(1), cpu.samples_us(16)] == [[500], [16 * 200]]
    assert gpu.samples_us(256)[0] < 1.6 * gpu.samples_us(1)[0]


def test_noise_and_stalls_have_the_size_that_is_asked_for() -> None:
    """The median stays what the figure says, and one batch in a hundred stalls."""
    cost = {"model": "affine", "launch_us": 1000, "item_us": 0}
    device = Device.model_validate(
        {"cost": cost, "noise": 0.1, "stall_probability": 0.01, "stall_us": 100_000}
    )
    times = batch_times(device, [1], np.random.default_rng(8))
    drawn_ms = np.array([times.next_ns(1, 0.0)[0] for _ in range(20_000)]) / 1e6
    assert np.median(drawn_ms) == pytest.approx(1, rel=0.02)
    assert np.log(drawn_ms[drawn_ms < 2]).std() == pytest.approx(0.1, rel=0.05)
    assert (drawn_ms > 2).mean() == pytest.approx(0.01, rel=0.2)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three batches of one, and a later one of two."""
    file = tmp_path / "recording.json"
    batches = [[0, 1, 10, 1], [3, 1, 30, 3], [1, 1, 20, None], [9, 2, 60, 4]]
    file.write_text(json.dumps({"batches": batches, "wakes": [[0, 5], [2, 8]]}))
    return file


def recorded(file: Path, model: str, buckets: tuple[int, ...] = (1, 2)) -> BatchTimes:
    device = {"cost": {"model": model, "file": file}, "noise": 0, "gap_us": 7, "wake_us": 9}
    return batch_times(Device.model_validate(device), buckets, np.random.default_rng(9))


def test_recorded_batches_are_drawn_at_random(recording: Path) -> None:
    """Per bucket; a bucket that was not recorded is named."""
    times = recorded(recording, "recorded")
    assert {times.next_ns(1, 0.0) for _ in range(100)} == {(10_000, 7000), (20_000, 7000), (30_000, 7000)}
    assert times.typical_ns() == {1: 20_000, 2: 60_000}
    with pytest.raises(ValueError, match="no time for batches of 4, there is one for 1, 2"):
        recorded(recording, "recorded", (1, 4))


def test_a_recording_is_replayed_by_time(recording: Path) -> None:
    """The batch nearest in time, with its gap; scaled by the medians where it was of another bucket."""
    times = recorded(recording, "replayed")
    first, second, third = (10_000, 1000), (20_000, 7000), (30_000, 3000)
    drawn = [times.next_ns(1, at_s) for at_s in (-1, 0.4, 0.6, 1.9, 2.1)]
    assert drawn == [first, first, second, second, third]
    assert times.next_ns(2, 8.0) == (60_000, 4000)
    assert times.next_ns(1, 8.0) == (60_000 // 3, 4000)
    assert [times.wake_ns(at_s) for at_s in (0, 0.9, 1.1, 9)] == [5000, 5000, 8000, 8000]


def test_the_command_prints_plots_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of each kind; a scenario that is none is one line and exit code 2."""

    def called(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["simulate", *arguments])
        return command.main()

    for name, magic in (("waits.png", b"\x89PNG"), ("waits.svg", b"<?xml")):
        assert (
            called("flood", "--seconds", "0.1", "--replicas", "1", "2", "--plot", str(tmp_path / name)) == 0
        )
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert "real_time_trading" in capsys.readouterr().out
    bad = tmp_path / "bad.toml"
    bad.write_text('description = "no streams"\nstreams = []\ndevice = { cost = { model = "cpu" } }\n')
    assert called(str(bad)) == 2
    assert "streams" in capsys.readouterr().err
    assert called("no_such_scenario") == 2
    assert "market_open" in capsys.readouterr().err


def test_a_table_has_a_row_per_class_and_run() -> None:
    """And one for all of them."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table("title", [run(scenario(), replicas, 0.1) for replicas in (1, 2)]))
    text = console.export_text()
    assert text.count("real_time_trading") == text.count("background_tasks") == text.count(" all ") == 2
