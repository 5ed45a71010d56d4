"""The figures in the page are those of the results file."""

import json

from bench.standing import BEGIN, END, PAGE, RESULTS, render


def test_page_has_the_figures_of_the_results() -> None:
    """`python -m bench.standing --docs-only` writes them again."""
    text = PAGE.read_text()
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert shown == render(json.loads(RESULTS.read_text()))
