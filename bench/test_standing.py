"""The figures in the page are those of the results file."""

import json

from bench.standing import RESULTS, SECTION, render


def test_page_has_the_figures_of_the_results() -> None:
    """`python -m bench.standing --docs-only` writes them again."""
    assert SECTION.shown() == render(json.loads(RESULTS.read_text()))
