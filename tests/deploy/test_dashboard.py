"""The Grafana dashboard: made from its table, whole, and about metrics that exist."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from server.settings import SloTable
from tests.deploy import dashboard
from tests.deploy.promql import unknown_names
from tests.test_repo import ROOT

WIDTH = 24
# Grafana's own, beside the dashboard's.
BUILT_IN = {"__rate_interval"}


def test_the_dashboard_is_what_its_table_makes() -> None:
    """`python deploy/grafana/dashboard.py` would change nothing."""
    script = ROOT / "deploy" / "grafana" / "dashboard.py"
    made = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    assert made.stdout == dashboard.DASHBOARD.read_text()


def test_queries_name_metrics_and_labels_that_exist() -> None:
    """So does what a variable offers, and a legend."""
    expressions = [query.expr for query in dashboard.queries()]
    expressions += [
        match[1]
        for variable in dashboard.variables().values()
        if (match := re.match(r"label_values\((.*), \w+\)", label_query(variable)))
    ]
    assert len(expressions) > len(dashboard.panels())
    assert [problem for expr in expressions for problem in unknown_names(expr)] == []


def label_query(variable: Mapping[str, Any]) -> str:
    query = variable["query"]
    return str(query["query"]) if isinstance(query, dict) else ""


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    """Grafana loses one of two panels with one number, and moves those that overlap."""
    panels = dashboard.panels()
    assert [number for number, count in Counter(panel["id"] for panel in panels).items() if count > 1] == []
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= WIDTH for place in places)
    assert [(one, other) for one, other in combinations(places, 2) if overlap(one, other)] == []


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    """And gets its data from the source that was chosen, with one letter for each query."""
    for panel in dashboard.panels():
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)), panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}, panel["title"]


def test_variables_are_there_and_used() -> None:
    """Every one that a query names exists, and every one is named somewhere."""
    variables = dashboard.variables()
    rest: Any = [dashboard.panels(), *(variable.get("query") for variable in variables.values())]
    used = set(re.findall(r"\$\{?(\w+)", str(rest)))
    assert used == variables.keys() | BUILT_IN


def test_targets_are_those_of_the_settings() -> None:
    """All that `[slo]` promises by default is drawn, each by a dashed line that is called a target."""
    variables = dashboard.variables()
    for name, value in SloTable().model_dump().items():
        assert float(variables[f"slo_{name}"]["query"]) == value
    drawn = [
        target["legendFormat"]
        for panel in dashboard.panels()
        for target in panel.get("targets", ())
        if "$slo_" in target["expr"]
    ]
    assert len(drawn) == len(SloTable.model_fields)
    assert all(legend.startswith("target") for legend in drawn)
