"""What has become of traces, as the telemetry process tells the supervisor and the supervisor everybody."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from server.telemetry import names


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """Since a start.

    Attributes:
        spans_exported: a collector has taken.
        spans_dropped: no collector has.
        records_dropped: requests that were to be traced and never became spans, by reason.
    """

    spans_exported: int = 0
    spans_dropped: int = 0
    records_dropped: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "TraceCounts") -> "TraceCounts":
        return TraceCounts(
            self.spans_exported + other.spans_exported,
            self.spans_dropped + other.spans_dropped,
            dict(Counter(self.records_dropped) + Counter(other.records_dropped)),
        )

    def to_fields(self) -> dict[str, Any]:
        """As JSON values; back by the constructor."""
        return asdict(self)

    def by_metric(self) -> dict[tuple[str, str], int]:
        """By metric and value of its label; "" where it has none."""
        return {
            (names.TRACE_SPANS_EXPORTED, ""): self.spans_exported,
            (names.TRACE_SPANS_DROPPED, ""): self.spans_dropped,
            **{
                (names.TRACE_RECORDS_DROPPED, reason): self.records_dropped.get(reason, 0)
                for reason in names.DROP_REASONS
            },
        }
