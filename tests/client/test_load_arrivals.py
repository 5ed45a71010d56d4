"""When the calls of an open loop are sent."""

from pathlib import Path

import numpy as np
import pytest

from client.load.arrivals import Arrivals, BadArrivals, parse_arrivals


def whole(arrivals: Arrivals, parts: int, duration_s: float = 20.0) -> np.ndarray:
    """What all processes send together."""
    return np.sort(np.concatenate([arrivals.part(index, parts, duration_s, 7) for index in range(parts)]))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("text", ["500", "poisson:500", "constant:500", "bursts:500/10"])
def test_processes_together_offer_the_rate(text: str, parts: int) -> None:
    instants = whole(parse_arrivals(text), parts)
    assert len(instants) == pytest.approx(10_000, rel=0.1)
    assert 0 <= instants[0] < 1
    assert 19 < instants[-1] < 20


def test_poisson_gaps_vary_as_they_should() -> None:
    """The deviation of exponential gaps is their mean; of parts added up, too."""
    gaps = np.diff(whole(parse_arrivals("poisson:1000"), 4))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)


def test_constant_is_even_over_all_processes() -> None:
    gaps = np.diff(whole(parse_arrivals("constant:100"), 3, 2.0))
    assert gaps == pytest.approx([0.01] * 199)


def test_bursts_come_at_once() -> None:
    instants = parse_arrivals("bursts:100/25").part(0, 1, 20.0, 0)
    counts = np.unique(instants, return_counts=True)[1]
    assert set(counts) == {25}


def test_recorded_instants_count_from_the_first(tmp_path: Path) -> None:
    file = tmp_path / "day.txt"
    file.write_text("100.5\n100.5\n101.0\n103.5\n")
    arrivals = parse_arrivals(f"recorded:{file}")
    assert arrivals.rate_per_s == pytest.approx(1.0)
    assert whole(arrivals, 2).tolist() == [0.0, 0.0, 0.5, 3.0]
    assert whole(arrivals, 1, duration_s=1.0).tolist() == [0.0, 0.0, 0.5]
    assert whole(arrivals.scaled(2), 1).tolist() == [0.0, 0.0, 0.25, 1.5]


def test_same_seed_same_instants() -> None:
    arrivals = parse_arrivals("200")
    assert arrivals.part(1, 2, 5.0, 3).tolist() == arrivals.part(1, 2, 5.0, 3).tolist()
    assert arrivals.part(1, 2, 5.0, 3).tolist() != arrivals.part(1, 2, 5.0, 4).tolist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no number"),
        ("fast", "'fast' is no number"),
        ("0", "must be over 0"),
        ("-5", "must be over 0"),
        ("nan", "must be over 0"),
        ("inf", "must be over 0"),
        ("1e9", "up to 1e+06"),
        ("uniform:5", "no arrivals, allowed are RATE"),
        ("bursts:5", "no bursts arrivals"),
        ("poisson:5/2", "no poisson arrivals"),
        ("bursts:5/0", "whole number from 1"),
        ("bursts:5/2.5", "whole number from 1"),
        ("bursts:5/x", "'x' is no number"),
        ("recorded:/nowhere", "cannot read /nowhere"),
    ],
)
def test_other_texts_are_refused(text: str, says: str) -> None:
    with pytest.raises(BadArrivals, match=says.replace("+", r"\+")):
        parse_arrivals(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [("1", "two ascending"), ("2\n1", "two ascending"), ("1\nx", "could not convert"), ("1\n1", "the same"),
     ("1\nnan", "two ascending"), ("1\ninf", "two ascending")],
)  # fmt: skip
def test_other_records_are_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(content)
    with pytest.raises(BadArrivals, match=says):
        parse_arrivals(f"recorded:{file}")
