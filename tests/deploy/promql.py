"""Which metrics and labels a PromQL expression names, and whether they exist."""

import re
from collections.abc import Iterator

from server.telemetry.names import METRICS, Kind
from tests.test_repo import ROOT

# Prometheus adds these when it scrapes, or makes them.
ADDED = {"job", "instance", "alertname", "alertstate", "severity"}
SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
# By what a query can name: of a histogram its parts.
LABELS = {
    f"{metric.name}{suffix}": {*metric.labels, *(("le",) if suffix == "_bucket" else ())}
    for metric in METRICS
    for suffix in SUFFIXES.get(metric.kind, ("",))
}
RECORDED = set(re.findall(r"record: (\S+)", (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()))
# A metric or what is recorded of it, and what is asked of its labels.
NAME = re.compile(r"(?<![\w$:])((?:\w+:)*tickring(?:_\w+)?(?::\w+)*)(?:\s*{([^}]*)})?")
GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def unknown_names(expr: str) -> Iterator[str]:
    """Series that nobody exports or records, labels that they do not have, and groups by other labels."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    known = set(ADDED)
    found = NAME.findall(bare)
    for name, matchers in found:
        labels = _labels(name)
        if not labels:
            yield f"{name} in {expr}"
            continue
        known |= labels
        named = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
        yield from (f"{name}{{{label}}} in {expr}" for label in named if label not in labels)
    if found:
        grouped = [label for names in GROUPED.findall(bare) for label in re.findall(r"\w+", names)]
        yield from (f"{label} in {expr}" for label in grouped if label not in known)


def _labels(name: str) -> set[str]:
    """Those that it can have; none where it does not exist."""
    if name in LABELS:
        return LABELS[name] | ADDED
    if name not in RECORDED:
        return set()
    # Recorded with some labels of the metric that it is named after.
    of = [metric for metric in METRICS if metric.name in name]
    return {"priority", "le", *ADDED, *(label for metric in of for label in metric.labels)}
