"""Which metrics and labels a PromQL expression names, and whether the server has them."""

import re
from collections.abc import Iterator

from server.telemetry.names import METRIC_LABELS

# Prometheus adds these when it scrapes, or makes them.
ADDED = {"job", "instance", "alertname", "alertstate", "severity"}
HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")
# A metric, alone or inside the name of what is recorded of it, and what is asked of its labels.
METRIC = re.compile(r"\b(tickring_\w+)(?::\w+)?(?:\s*{([^}]*)})?")
GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def unknown_names(expr: str) -> Iterator[str]:
    """Metrics that the server does not have, labels that these do not have, and groups by other labels."""
    known = set(ADDED)
    for name, matchers in METRIC.findall(expr):
        labels = _labels(name)
        if labels is None:
            yield f"{name} in {expr}"
            continue
        known |= labels
        named = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers))
        yield from (f"{name}{{{label}}} in {expr}" for label in named if label not in labels | ADDED)
    if "tickring_" in expr:
        grouped = [label for names in GROUPED.findall(expr) for label in re.findall(r"\w+", names)]
        yield from (f"{label} in {expr}" for label in grouped if label not in known)


def _labels(name: str) -> set[str] | None:
    """Of a metric or a part of a histogram; None where there is none of this name."""
    if name in METRIC_LABELS:
        return set(METRIC_LABELS[name])
    for suffix in HISTOGRAM_SUFFIXES:
        base = name.removesuffix(suffix)
        if base != name and base in METRIC_LABELS:
            return set(METRIC_LABELS[base]) | ({"le"} if suffix == "_bucket" else set())
    return None
