"""Reports: tables, JSON, and a page that needs nothing from anywhere."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from client.load.chart import Axis, Series, chart
from client.load.objectives import Verdict
from client.load.page import page, write_page
from client.load.report import Report, Table, print_report, write_json
from tests.client.load_world import flow_figures, report, run_figures

VOID = {"meta", "link", "line", "circle", "polyline"}


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href") or value == "data:,", (tag, name, value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def full() -> Report:
    made = report()
    made.runs.append(run_figures(flow_figures(errors=0.1), flow_figures(name="<b>bulk</b>")))
    made.tables.append(Table("A <table>", ["a", "b"], [["1", "2 & 3"]]))
    made.verdicts += [Verdict("p99", 5.0, 4.0), Verdict("p50", None, 4.0)]
    made.notes.append("a note")
    made.settings = {"scheduler.latency_budget_ms": "10"}
    return made


def test_page_is_whole_and_needs_nothing(full: Report) -> None:
    seen = checked(page(full))
    for text in (
        "<b>bulk</b>",
        "A <table>",
        "2 & 3",
        "2 of 2 promises missed",
        "latency_budget_ms",
        "a note",
        "a CPU",
    ):
        assert text in seen.text, text
    assert seen.seen.count("figure") == 5
    assert "script" not in seen.seen


@pytest.mark.parametrize("runs", [0, 1, 7])
def test_page_of_any_number_of_runs(runs: int) -> None:
    made = report()
    made.runs += [run_figures(flow_figures(), title=f"run {number}") for number in range(runs)]
    checked(page(made))


def test_page_of_a_flow_that_got_no_answer() -> None:
    made = report()
    made.runs.append(run_figures(flow_figures(p50=None, p99=None, per_s=0.0, errors=1.0)))
    assert "nothing was measured" in checked(page(made)).text


def test_json_has_it_all(full: Report, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_json(full, file)
    told = json.loads(file.read_text())
    assert told["holds"] is False
    assert told["runs"][0]["flows"][0]["latency_ms"]["p99"] == 20.0
    assert told["verdicts"][0]["text"] == "missed by 1 ms, 25%"
    assert told["context"]["commit"] == "abc"
    write_page(full, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_tables_are_printed(full: Report, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(full)
    out = capsys.readouterr().out
    for text in ("p99.9", "UNAVAILABLE", "missed by 1 ms", "generator: 0.20 cores"):
        assert text in out


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "points",
    [[], [(0.0, 1.0)], [(0.0, None)], [(1.0, 5.0), (2.0, None), (3.0, 7.0)], [(1.0, 0.0), (2.0, 0.0)],
     [(5.0, 1e-9), (6.0, 1e9)]],
)  # fmt: skip
def test_any_series_can_be_drawn(points: list[tuple[float, float | None]], logarithmic: bool) -> None:
    drawn = checked(chart("c", [Series("s", points)], Axis("x"), Axis("y", logarithmic=logarithmic)))
    assert "nan" not in drawn.text.lower()
