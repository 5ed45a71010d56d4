"""The figures in the page are those of the results file, and a rate that was not kept has none."""

import json

from bench.peers.measure import Row
from bench.peers.table import RESULTS, SECTION, render


def test_page_has_the_figures_of_the_results() -> None:
    """`python -m bench.peers --docs-only` writes them again."""
    assert SECTION.shown() == render(json.loads(RESULTS.read_text()))


def test_one_round_that_did_not_hold_the_rate_is_saturated() -> None:
    """However well the others did."""
    told = json.loads(RESULTS.read_text())
    rows = [Row(**row) for row in told["rows"] if row["server"] == "tickring" and row["rate"] == 300]
    told["rows"] += [{**vars(rows[0]), "held": False}]
    (line,) = [line for line in render(told).splitlines() if line.startswith("| 300/s | tickring |")]
    assert line == "| 300/s | tickring | saturated | - | - |"
