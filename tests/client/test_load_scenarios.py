"""The questions of `tickring bench`, asked of servers that are made up."""

import math
import random
from collections.abc import Sequence

import pytest

from client.load.arrivals import Arrivals, parse_arrivals
from client.load.compare import compare, ratio_of
from client.load.errors import TooSlow
from client.load.figures import RunFigures
from client.load.flows import Flow
from client.load.scenarios import hold, memory_verdicts, mixed, stress, validate
from tests.client.load_world import MadeUpBench, flow_figures, report, run_figures

CAPACITY = 1000.0
SLO = {"p99_ms": 100.0, "max_error_ratio": 0.01}


def flow(rate: str = "100", name: str = "load") -> Flow:
    return Flow(name, [b""], arrivals=parse_arrivals(rate))


def rate_of(flows: Sequence[Flow]) -> float:
    arrivals = flows[0].arrivals
    assert arrivals is not None
    return arrivals.rate_per_s


def server(flows: Sequence[Flow]) -> RunFigures:
    """Waits grow towards its capacity; beyond it the rest is refused."""
    rate = rate_of(flows)
    answered = min(rate, CAPACITY)
    p99 = 5.0 / max(0.01, 1 - answered / CAPACITY)
    return run_figures(flow_figures(p99=p99, per_s=answered, errors=max(0.0, 1 - CAPACITY / rate)))


def test_stress_finds_the_knee() -> None:
    """Where p99 passes the promise: at 95 % of what this server can do."""
    bench, told = MadeUpBench(server), report("stress")
    stress(bench, told, flow(), 5.0, SLO, factor=2.0, highest_per_s=1e5)
    rates = [rate_of(flows) for flows in bench.asked]
    assert rates[:5] == [100, 200, 400, 800, 1600]
    good = max(rate for rate in rates if rate <= 950)
    bad = min(rate for rate in rates if rate > 950)
    assert bad / good < 1.15
    assert told.notes == [f"the knee is between {good:,.0f}/s and {bad:,.0f}/s"]
    assert [row[0] for row in told.tables[0].rows] == [f"{rate:,.0f}" for rate in sorted(rates)]
    assert told.holds, "a knee is found, no promise was made for it"


def test_stress_says_why_a_level_is_too_much() -> None:
    told = report("stress")
    stress(MadeUpBench(server), told, flow(), 5.0, SLO, factor=2.0, highest_per_s=1e5)
    assert told.tables[0].rows[-1][-1].startswith("p99_ms missed by")
    assert told.tables[0].rows[0][-1] == "holds"


def test_stress_without_promises_stops_at_errors_and_missing_answers() -> None:
    def lossy(flows: Sequence[Flow]) -> RunFigures:
        return run_figures(flow_figures(per_s=100, errors=0.06))

    told = report("stress")
    stress(MadeUpBench(lossy), told, flow(), 5.0, {}, factor=2.0, highest_per_s=1e5)
    assert told.tables[0].rows[0][-1] == "6.0% errors"
    assert "start lower" in told.notes[0]


def test_stress_that_breaks_nothing_says_so() -> None:
    bench, told = MadeUpBench(lambda flows: run_figures(flow_figures(per_s=rate_of(flows)))), report("stress")
    stress(bench, told, flow(), 5.0, SLO, factor=4.0, highest_per_s=2000)
    assert [rate_of(flows) for flows in bench.asked] == [100, 400, 1600]
    assert told.notes == ["nothing broke up to 1,600/s"]


@pytest.mark.parametrize(
    ("limit_per_s", "known"), [(300, "nothing broke up to 200/s"), (1100, "the knee is between")]
)
def test_stress_ends_where_the_generator_does(limit_per_s: float, known: str) -> None:
    """In the climb, or between the rates that hold and break: what was found until then is told."""

    def limited(flows: Sequence[Flow]) -> RunFigures:
        if limit_per_s < rate_of(flows) < 1500:
            raise TooSlow("the generator fell behind")
        return server(flows)

    told = report("stress")
    stress(MadeUpBench(limited), told, flow(), 5.0, {}, factor=2.0, highest_per_s=1e5)
    assert told.notes[0].endswith("/s could not be offered, the search ends there: the generator fell behind")
    assert told.notes[1].startswith(known)


def test_stress_of_a_generator_that_can_offer_nothing_has_no_answer() -> None:
    def lame(flows: Sequence[Flow]) -> RunFigures:
        raise TooSlow("the generator fell behind")

    with pytest.raises(TooSlow):
        stress(MadeUpBench(lame), report("stress"), flow(), 5.0, {}, factor=2.0, highest_per_s=1e5)


def test_stress_keeps_the_kind_of_arrivals() -> None:
    bench = MadeUpBench(server)
    stress(bench, report("stress"), flow("bursts:100/10"), 5.0, SLO, factor=2.0, highest_per_s=200)
    assert [flows[0].arrivals for flows in bench.asked] == [
        Arrivals("bursts", 100.0, 10),
        Arrivals("bursts", 200.0, 10),
    ]


def test_hold_judges_the_first_flow() -> None:
    told = report()
    run = run_figures(flow_figures(p99=50), flow_figures(p99=500, name="bulk"))
    hold(MadeUpBench(lambda _: run), told, [flow(), flow(name="bulk")], 5.0, SLO)
    assert [verdict.name for verdict in told.verdicts] == ["load: p99_ms", "load: max_error_ratio"]
    assert told.holds
    assert told.runs == [run]


def test_mixed_judges_urgent_work_beside_bulk() -> None:
    def busy(flows: Sequence[Flow]) -> RunFigures:
        return run_figures(*(flow_figures(p99=20.0 * len(flows) ** 3, name=each.name) for each in flows))

    bench, told = MadeUpBench(busy), report("mixed")
    mixed(bench, told, flow(name="urgent"), flow(name="bulk"), 5.0, SLO)
    assert [[each.name for each in flows] for flows in bench.asked] == [["urgent"], ["urgent", "bulk"]]
    assert not told.holds
    assert [row[2] for row in told.tables[0].rows] == ["20.00", "160"]


def test_validate_asks_for_the_targets() -> None:
    bench, told = MadeUpBench(server), report("validate")
    validate(bench, told, flow(), 20.0, SLO, target_per_s=200.0, peak_per_s=500.0)
    assert [rate_of(flows) for flows in bench.asked] == [200.0, 500.0]
    assert told.holds
    weak = report("validate")
    validate(bench, weak, flow(), 20.0, SLO, target_per_s=200.0, peak_per_s=1500.0)
    assert [verdict.name for verdict in weak.verdicts if not verdict.holds] == [
        "peak: answers of 1500/s",
        "peak: max_error_ratio",
    ]


def test_memory_that_grows_is_seen() -> None:
    before = {"engine-0": 100e6, "frontend-0": 50e6, "gone": 5e6}
    after = {"engine-0": 101e6, "frontend-0": 55e6, "new": 7e6}
    assert [(v.name.split()[2], v.holds) for v in memory_verdicts(before, after)] == [
        ("engine-0", True),
        ("frontend-0", False),
    ]


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str, per_s: float) -> tuple[str, object]:
        def run(title: str) -> RunFigures:
            order.append(name)
            return run_figures(flow_figures(per_s=per_s), title=title)

        return name, run

    told = report("compare")
    ratios = compare(told, side("a", 100), side("b", 150), 3)  # type: ignore[arg-type]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert ratios["answers per second"].mean == pytest.approx(1.5)
    assert [run.title for run in told.runs] == ["a 1", "b 1", "a 2", "b 2", "a 3", "b 3"]


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 1,000 comparisons of equal sides with 6 noisy rounds some 5 % seem to differ."""
    rng = random.Random(5)
    seem = sum(
        ratio_of([(math.exp(rng.gauss(0, 0.2)), math.exp(rng.gauss(0, 0.2))) for _ in range(6)]).differs
        for _ in range(1000)
    )
    assert 30 <= seem <= 75


def test_real_difference_is_found() -> None:
    rng = random.Random(6)
    drift = [math.exp(rng.gauss(0, 0.5)) for _ in range(8)]  # of the machine, met by both sides of a round
    ratio = ratio_of([(each, 1.1 * each * math.exp(rng.gauss(0, 0.02))) for each in drift])
    assert ratio.differs
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < 1.1 < ratio.high


def test_single_round_has_no_interval() -> None:
    assert ratio_of([(2.0, 3.0)]).low is None
    assert not ratio_of([(2.0, 3.0)]).differs
