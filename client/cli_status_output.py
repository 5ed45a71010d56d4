"""How `tickring stats` shows what a server does."""

from collections.abc import Iterable

from rich.table import Table

from client.admin_info import ServerStatus
from client.bars import bars
from client.cli_output import console
from client.status_info import (
    Activity,
    DeepHealth,
    FlowActivity,
    ModelActivity,
    SloObjective,
    SloReport,
    SloWindow,
)

NOTHING = "-"


def print_stats(status: ServerStatus) -> None:
    """The longest window, by model and class, and by model with L(b) of each engine."""
    out = console()
    out.print(heading(status))
    if not status.activity:
        out.print("nothing is known yet: the server has been up for less than a second")
        return
    activity = status.activity[-1]
    out.print(f"the last {activity.covered_s:.0f} s, times in ms")
    for model in sorted({flow.model_name for flow in activity.flows}):
        out.print(f"\n{model}")
        out.print(_flows(flow for flow in activity.flows if flow.model_name == model))
    out.print()
    out.print(_models(activity.models))
    if ran := _ran(activity):
        out.print("\nhow long batches took, median and 95th percentile in ms, by bucket")
        for line in ran:
            out.print(f"  {line}", soft_wrap=True)
    if learned := _learned(status):
        out.print("\nwhat engines expect of the next batch, median and 95th percentile in ms, by bucket")
        for line in learned:
            out.print(f"  {line}", soft_wrap=True)
    if status.health is not None:
        print_health(status.health)


def print_slo(report: SloReport) -> None:
    """A table for each window, then what to change."""
    out = console()
    out.print(f"promises: {report.state.replace('_', ' ')}")
    covered_s = 0.0
    for window in report.windows:
        if window.covered_s > covered_s:  # a young server's longer windows are the same as the shorter ones
            covered_s = window.covered_s
            out.print(f"\nthe last {_span(covered_s)}, {window.requests} requests")
            out.print(_window(window))
            for remark in _remarks(window):
                out.print(f"  {remark}")
    for advice in report.recommendations:
        out.print(f"\n{advice.setting}: {advice.text}\n  {advice.evidence}")


def print_health(health: DeepHealth) -> None:
    """A line, one for each reason, and one for each prediction."""
    out = console()
    out.print(f"health: {health.state}")
    for reason in health.reasons:
        out.print(f"  {reason}")
    for each in health.predictions:
        said = each.error or f"{each.ms:.3g} ms"
        out.print(f"  {each.frontend} {each.model_name} version {each.model_version}: {said}")


def heading(status: ServerStatus) -> str:
    """One line: state, profile, version of the settings, promises."""
    return (
        f"{status.state}, profile {status.profile}, settings version {status.settings_version}, "
        f"promises {status.slo.state.replace('_', ' ')}"
    )


def number(value: float | None, digits: int = 3) -> str:
    """Short, or a dash where there is none; never in powers of ten."""
    if value is None:
        return NOTHING
    if value and abs(value) < 10 ** (digits - 1):
        return f"{value:.{digits}g}" if abs(value) >= 0.001 else "0.00"
    return f"{value:.0f}"


def percent(ratio: float | None) -> str:
    """Of a ratio; what is nearly all is not told as all."""
    if ratio is None:
        return NOTHING
    shown = f"{ratio * 100:.2f}"
    return "99.99%" if shown == "100.00" and ratio < 1 else f"{shown.rstrip('0').rstrip('.')}%"


def plain_table(first: str, *others: str) -> Table:
    """Without lines, names to the left and figures to the right: a class and its figures fit 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True, overflow="crop", max_width=20)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _flows(flows: Iterable[FlowActivity]) -> Table:
    table = plain_table(
        "class", "req/s", "fail/s", "shed/s", "wait p50", "p99", "reply p50", "p95", "p99", "depth"
    )
    for flow in flows:
        table.add_row(
            flow.priority,
            number(flow.requests_per_s),
            number(flow.failed_per_s),
            number(flow.shed_per_s),
            number(flow.wait_p50_ms),
            number(flow.wait_p99_ms),
            number(flow.request_p50_ms),
            number(flow.request_p95_ms),
            number(flow.request_p99_ms),
            str(flow.depth),
        )
    return table


def _models(models: Iterable[ModelActivity]) -> Table:
    table = plain_table("model", "batch/s", "rows/s", "mean size", "target", "compute p50", "p99", "sizes")
    for model in models:
        table.add_row(
            model.model_name,
            number(model.batches_per_s),
            number(model.rows_per_s),
            number(model.mean_batch),
            str(model.target_size),
            number(model.compute_p50_ms),
            number(model.compute_p99_ms),
            _sizes(model),
        )
    return table


def _sizes(model: ModelActivity) -> str:
    if not model.batch_sizes:
        return NOTHING
    largest = model.batch_sizes[-1].up_to
    return f"{bars([entry.batches for entry in model.batch_sizes])} to {largest}"


def _ran(activity: Activity) -> list[str]:
    return [
        f"{model.model_name}: "
        + ", ".join(
            f"{entry.bucket}: {number(entry.compute_p50_ms)} {number(entry.compute_p95_ms)}"
            for entry in model.buckets
        )
        for model in activity.models
        if model.buckets
    ]


def _learned(status: ServerStatus) -> list[str]:
    return [
        f"{engine.name} {model.model_name} version {model.model_version}: "
        + ", ".join(
            f"{entry.bucket}: {entry.median_ns / 1e6:.3f} {entry.high_ns / 1e6:.3f}"
            for entry in model.latency
        )
        for engine in status.engines
        for model in engine.models
        if model.latency
    ]


def _window(window: SloWindow) -> Table:
    table = plain_table("promise", "bound", "reached", "kept to it", "has to", "budget left", "burn rate")
    table.add_column("state", no_wrap=True)
    for objective in window.objectives:
        table.add_row(
            objective.name,
            f"{objective.threshold:g}",
            _reached(objective),
            percent(objective.good_ratio),
            percent(objective.promised_ratio),
            percent(objective.budget_left),
            number(objective.burn_rate),
            objective.state.replace("_", " "),
        )
    return table


def _remarks(window: SloWindow) -> Iterable[str]:
    """What does not fit the table: notes, and the classes that miss what others keep."""
    for objective in window.objectives:
        if objective.note:
            yield f"{objective.name}: {objective.note}"
        for each in objective.classes:
            if each.state == "missed":
                yield (
                    f"{objective.name} of {each.priority}: {each.value:.3g} ms, "
                    f"with its slack it may be {each.threshold:.3g} ms"
                )


def _reached(objective: SloObjective) -> str:
    """Of a latency that of the class that is nearest to its bound, or furthest beyond it."""
    if objective.value is not None:
        return number(objective.value)
    worst = max(objective.classes, key=lambda each: each.value / (each.threshold or 1.0), default=None)
    return NOTHING if worst is None else number(worst.value)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
