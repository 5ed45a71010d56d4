"""Promises: what may be asked for, and what keeps them."""

from pathlib import Path

import pytest

from client.load.figures import FlowFigures
from client.load.objectives import BadObjectives, Verdict, judge, parse, read
from tests.client.load_world import flow_figures


@pytest.fixture
def flow() -> FlowFigures:
    return flow_figures(p50=5.0, p99=20.0, per_s=100.0, errors=0.02)


def test_every_promise_is_judged(flow: FlowFigures) -> None:
    slo = {"p50_ms": 5.0, "p99_ms": 19.0, "max_ms": 40.0, "min_rps": 100.0, "max_error_ratio": 0.01}
    assert {verdict.name: verdict.holds for verdict in judge(slo, flow)} == {
        "load: p50_ms": True,
        "load: p99_ms": False,
        "load: max_ms": True,
        "load: min_rps": True,
        "load: max_error_ratio": False,
    }


def test_verdict_says_by_how_much() -> None:
    assert Verdict("p99", 25.0, 20.0).text == "missed by 5 ms, 25%"
    assert Verdict("rate", 90.0, 100.0, at_most=False, unit="/s").text == "missed by 10 /s, 10%"
    assert Verdict("restarts", 2.0, 0.0, unit="").text == "missed by 2"
    assert Verdict("p99", 20.0, 20.0).text == "holds"


def test_no_figure_keeps_no_promise() -> None:
    assert not Verdict("p99", None, 20.0).holds
    assert Verdict("p99", None, 20.0).text == "no figure"


def test_promises_are_read_from_a_file_such_as_the_servers(tmp_path: Path) -> None:
    file = tmp_path / "tickring.toml"
    file.write_text(
        "[server]\ngrpc_port = 8001\n[slo]\np99_ms = 80\nmax_error_ratio = 0.02\ntarget_rps = 200\n"
    )
    assert read(file) == {"p99_ms": 80.0, "max_error_ratio": 0.02}
    assert parse(["p99_ms=1.5", "min_rps=10"]) == {"p99_ms": 1.5, "min_rps": 10.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [("p99_ms", "NAME=NUMBER"), ("p98_ms=5", "unknown objective"), ("p99_ms=x", "no number"),
     ("p99_ms=-1", "no number"), ("p99_ms=inf", "no number"), ("p99_ms=nan", "no number")],
)  # fmt: skip
def test_other_promises_are_refused(text: str, says: str) -> None:
    with pytest.raises(BadObjectives, match=says):
        parse([text])


@pytest.mark.parametrize("content", ["", "slo = 5", "[slo]\np98_ms = 1", "[slo]\np99_ms = 'x'", "[slo"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(BadObjectives):
        read(file)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadObjectives, match="cannot read"):
        read(tmp_path / "none.toml")
