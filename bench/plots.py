"""Plots of a simulation: waits and goodput per class against the number of replicas."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: there is no display where this runs

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.simulation_report import ClassSummary, Summary


def plot(path: Path, title: str, summaries: Sequence[Summary]) -> None:
    """Writes a picture in the format of the file's suffix. Raises ValueError for one it does not know."""
    figure, (waits, goodput) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    figure.suptitle(title)
    replicas = [summary.replicas for summary in summaries]
    for position, first in enumerate(summaries[0].classes):
        parts = [summary.classes[position] for summary in summaries]
        colour = f"C{position}"
        p50, p99 = [part.wait_p50_ms for part in parts], [part.wait_p99_ms for part in parts]
        if first.name != "all":
            waits.plot(replicas, _drawn(p50), "o--", color=colour, markersize=3, linewidth=1)
            waits.plot(replicas, _drawn(p99), "o-", color=colour, markersize=4, label=first.name)
        goodput.plot(
            replicas, [_share(part) for part in parts], "o-", color=colour, markersize=4, label=first.name
        )
    waits.set(title="queue wait: p99 solid, p50 dashed", ylabel="ms", yscale="log")
    goodput.set(title="answered before the deadline", ylabel="share of what was offered", ylim=(-0.03, 1.05))
    for axes in (waits, goodput):
        _dress(axes, replicas)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _share(part: ClassSummary) -> float:
    return part.goodput_per_s / part.offered_per_s if part.offered else float("nan")


def _drawn(values: Sequence[float | None]) -> list[float]:
    """No wait at all has no place on a logarithmic axis: it is drawn as a microsecond."""
    return [float("nan") if value is None else max(value, 0.001) for value in values]


def _dress(axes: Axes, replicas: Sequence[int]) -> None:
    axes.set_xlabel("replicas")
    axes.set_xscale("log")
    axes.set_xticks(replicas, [str(number) for number in replicas])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
