"""docs/metrics.md names every metric as it is."""

import re

from server.telemetry import names
from tests.test_repo import ROOT

DOCUMENT = (ROOT / "docs" / "metrics.md").read_text()


def test_every_metric_is_in_the_document_with_its_labels_and_kind() -> None:
    """And the document has no other."""
    rows = re.findall(r"^\| `(tickring_\w+)` \|(.*?)\| (\w+) \| .+ \|$", DOCUMENT, re.MULTILINE)
    told = {name: (tuple(re.findall(r"`(\w+)`", labels)), kind) for name, labels, kind in rows}
    assert len(told) == len(rows), "a metric is there twice"
    assert told == {metric.name: (metric.labels, metric.kind.name.lower()) for metric in names.METRICS}


def test_every_reason_to_shed_is_in_the_document() -> None:
    """And the document has no other."""
    told = re.findall(r"^\| `([A-Z_]+)` \|", DOCUMENT, re.MULTILINE)
    assert sorted(told) == sorted(names.SHED_REASONS)
