"""Writes the Grafana dashboard: panels.toml in the form in which Grafana imports it, to standard output.

    .venv/bin/python deploy/grafana/dashboard.py > deploy/grafana/tickring.json

The targets are the defaults of `[slo]`; each is a variable, for those who promise something else.
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.settings import SloTable

PANELS = Path(__file__).with_name("panels.toml")
# The form of Grafana 10.4; later versions convert it when they load it.
SCHEMA = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
GRAPH_HEIGHT, NUMBER_HEIGHT = 8, 4
MAX_GRAPHS_PER_LINE = 3
COLORS = ("green", "yellow", "orange", "red")

Json = dict[str, Any]


def dashboard(rows: Sequence[Mapping[str, Any]], slo: SloTable) -> Json:
    """All of it; `rows` as panels.toml has them."""
    return {
        "uid": "tickring",
        "title": "tickring",
        "tags": ["tickring"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables(slo))},
        "panels": list(_panels(rows)),
    }


def _variables(slo: SloTable) -> Iterator[Json]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield _found("job", "label_values(tickring_process_up, job)")
    every = {"multi": True, "includeAll": True, "allValue": ".*"}
    yield _found("model", 'label_values(tickring_model_ready{job="$job"}, model)') | every
    for name, value in slo.model_dump().items():
        option = {"text": f"{value:g}", "value": f"{value:g}", "selected": True}
        yield {
            "name": f"slo_{name}",
            "label": f"slo.{name}",
            "type": "textbox",
            "query": option["value"],
            "current": option,
            "options": [option],
        }


def _found(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # whenever the range of time changes
        "sort": 1,
    }


def _panels(rows: Sequence[Mapping[str, Any]]) -> Iterator[Json]:
    number, y = 1, 0
    for row in rows:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": row["title"],
            "collapsed": False,
            "panels": [],
            "gridPos": place,
        }
        y += 1
        panels = row["panel"]
        numbers = all("levels" in panel for panel in panels)
        height = NUMBER_HEIGHT if numbers else GRAPH_HEIGHT
        columns = len(panels) if numbers else _columns(len(panels))
        width = WIDTH // columns
        for index, panel in enumerate(panels):
            line, column = divmod(index, columns)
            place = {"x": column * width, "y": y + line * height, "w": width, "h": height}
            yield {"id": number + 1 + index, "gridPos": place, **_panel(panel)}
        number += 1 + len(panels)
        y += (len(panels) - 1) // columns * height + height


def _columns(graphs: int) -> int:
    return 2 if graphs == 4 else min(graphs, MAX_GRAPHS_PER_LINE)


def _panel(panel: Mapping[str, Any]) -> Json:
    kind = _number(panel["levels"]) if "levels" in panel else _graph(log=panel.get("log", False))
    defaults = {"unit": panel["unit"], **kind.pop("defaults")}
    if not panel.get("log"):
        defaults["min"] = 0
    if "largest" in panel:
        defaults["max"] = panel["largest"]
    return {
        **kind,
        "title": panel["title"],
        "description": panel["about"],
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": [_TARGETS]},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": expr.strip(),
                "legendFormat": legend,
            }
            for index, (legend, expr) in enumerate(panel["queries"])
        ],
    }


def _number(levels: Sequence[float]) -> Json:
    warm = COLORS[len(COLORS) - len(levels) :]
    steps: list[Json] = [{"color": COLORS[0], "value": None}]
    steps += [{"color": color, "value": level} for color, level in zip(warm, levels, strict=True)]
    return {
        "type": "stat",
        "defaults": {"thresholds": {"mode": "absolute", "steps": steps}},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
    }


def _graph(*, log: bool) -> Json:
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    return {
        "type": "timeseries",
        "defaults": {
            "custom": {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "scaleDistribution": scale}
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


# Lines that stand for what is wanted, by their legends.
_TARGETS = {
    "matcher": {"id": "byRegexp", "options": "/^target/"},
    "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}}],
}

if __name__ == "__main__":
    with PANELS.open("rb") as file:
        json.dump(dashboard(tomllib.load(file)["row"], SloTable()), sys.stdout, indent=2)
    print()
