"""The Grafana dashboard of the checkout: its queries, with Grafana's variables filled in."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.test_repo import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "tickring.json"
# What Grafana would fill in, beside the variables' own defaults.
CHOSEN = {"job": "tickring", "model": ".*", "__rate_interval": "10s"}


@dataclass(frozen=True)
class Query:
    """One query of one panel."""

    panel: str
    legend: str
    expr: str

    @property
    def legend_labels(self) -> set[str]:
        """The labels that its legend names."""
        return set(re.findall(r"{{(\w+)}}", self.legend))


def load() -> dict[str, Any]:
    """As it would be imported."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels() -> list[dict[str, Any]]:
    """Rows among them."""
    found: list[dict[str, Any]] = load()["panels"]
    return found


def variables() -> Mapping[str, Any]:
    """By name."""
    return {variable["name"]: variable for variable in load()["templating"]["list"]}


def queries() -> Iterator[Query]:
    """Of all panels, as Prometheus would get them."""
    values = CHOSEN | {
        name: variable["query"] for name, variable in variables().items() if variable["type"] == "textbox"
    }
    for panel in panels():
        for target in panel.get("targets", ()):
            expr = re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"])
            yield Query(panel["title"], target["legendFormat"], expr)
