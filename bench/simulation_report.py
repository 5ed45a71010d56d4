"""What a run came to, per class: rates, ends, waits; as numbers for JSON and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.table import Table

from bench.simulation import REFUSED, START_NS, Run
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass


@dataclass(frozen=True)
class ClassSummary:
    """The requests of one class, or of all.

    Attributes:
        results_per_s: answered until the arrivals ended; what is answered afterwards is no rate of theirs.
        goodput_per_s: of those, answered before their deadline.
        refused: requests by reason.
        expired, late: requests whose deadline passed in the queue; that were answered after it.
        wait_*_ms: queue wait of requests with a result; None without any.
    """

    name: str
    offered: int
    offered_per_s: float
    results_per_s: float
    goodput_per_s: float
    refused: dict[str, int]
    expired: int
    late: int
    wait_p50_ms: float | None
    wait_p99_ms: float | None
    wait_max_ms: float | None

    @property
    def missed(self) -> int:
        """Requests that were let in and had no result before their deadline."""
        return self.expired + self.late


@dataclass(frozen=True)
class Summary:
    """One run: a number of replicas under the load of a scenario.

    Attributes:
        utilisation: share of the time of all instances that was spent computing.
        mean_batch: items per batch.
        classes: those that send, most urgent first; then all of them together.
    """

    replicas: int
    utilisation: float
    mean_batch: float
    classes: tuple[ClassSummary, ...]


def summarise(run: Run, classes: Sequence[PriorityClass]) -> Summary:
    """The figures of a run."""
    class_index = run.arrivals.class_index
    parts = [_of_class(run, one.label, class_index == one.index, {one.index}) for one in classes]
    if len(parts) > 1:
        everybody = np.ones(len(class_index), dtype=np.bool_)
        parts.append(_of_class(run, "all", everybody, {one.index for one in classes}))
    return Summary(
        replicas=run.replicas,
        utilisation=run.busy_ns / (run.instances * run.seconds * 1e9),
        mean_batch=run.items / run.batches if run.batches else 0.0,
        classes=tuple(parts),
    )


def _of_class(run: Run, name: str, mine: npt.NDArray[np.bool_], indices: set[int]) -> ClassSummary:
    outcome, ended_ns, wait_ns = run.outcome[mine], run.ended_ns[mine], run.wait_ns[mine]
    answered = outcome == Outcome.RESULT
    in_run = answered & (ended_ns <= START_NS + run.seconds * 1e9)
    in_time = ended_ns <= run.arrivals.deadline_ns[mine]
    refused: dict[str, int] = {}
    for (index, reason), requests in sorted(run.refused.items()):
        if index in indices:
            refused[reason] = refused.get(reason, 0) + requests
    assert int((outcome == REFUSED).sum()) == sum(refused.values())
    waits_ms: list[float | None] = [None, None, None]
    if answered.any():
        waits_ms = [float(ms) for ms in np.quantile(wait_ns[answered], [0.5, 0.99, 1.0]) / 1e6]
    return ClassSummary(
        name=name,
        offered=len(outcome),
        offered_per_s=len(outcome) / run.seconds,
        results_per_s=int(in_run.sum()) / run.seconds,
        goodput_per_s=int((in_run & in_time).sum()) / run.seconds,
        refused=refused,
        expired=int((outcome == Outcome.EXPIRED).sum()),
        late=int((answered & ~in_time).sum()),
        wait_p50_ms=waits_ms[0],
        wait_p99_ms=waits_ms[1],
        wait_max_ms=waits_ms[2],
    )


def table(title: str, summaries: Sequence[Summary]) -> Table:
    """A row per class, a section per number of replicas."""
    grid = Table(title=title, title_justify="left")
    for name in ("replicas", "busy", "batch"):
        grid.add_column(name, justify="right")
    grid.add_column("class")
    for name in ("offered/s", "results/s", "goodput/s", "missed", "wait p50", "p99", "max, ms"):
        grid.add_column(name, justify="right")
    grid.add_column("refused")
    for summary in summaries:
        head = [str(summary.replicas), f"{summary.utilisation:.0%}", f"{summary.mean_batch:.1f}"]
        for part in summary.classes:
            waits = [_ms(ms) for ms in (part.wait_p50_ms, part.wait_p99_ms, part.wait_max_ms)]
            rates = [part.offered_per_s, part.results_per_s, part.goodput_per_s]
            refused = ", ".join(f"{reason} {requests:,}" for reason, requests in part.refused.items())
            grid.add_row(
                *head, part.name, *(f"{rate:,.0f}" for rate in rates), f"{part.missed:,}", *waits, refused
            )
            head = ["", "", ""]
        grid.add_section()
    return grid


def _ms(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.2f}"
