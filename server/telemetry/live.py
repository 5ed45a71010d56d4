"""What the status page and `tickring top` show: the last second and the last minute, as JSON values.

Keys are the names of fields in `proto/tickring/v1/status.proto`. What nothing is known of is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scheduler.priority import PriorityClass
from server.telemetry.advice import Recommendation
from server.telemetry.slo import FAILED, Objective
from server.telemetry.totals import BATCH_SIZE_BOUNDS, Histogram
from server.telemetry.windows import Span, sum_of

# The last second, and the last minute.
ACTIVITY_S = (1, 60)
# Upper bounds of the columns of a small histogram; one more column has what is longer.
COLUMNS_S = (0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COLUMNS_MS = [bound * 1e3 for bound in COLUMNS_S]
LABELS = tuple(member.label for member in PriorityClass)

Json = dict[str, Any]


def activity(span: Span, window_s: float) -> Json:
    """What happened in this time: by class over all models, by model and class, and by model."""
    seen = {(model, label) for model, label, _ in span.last.requests} | set(span.last.queue_wait_s)
    flows = [
        (model, label) for model in sorted({m for m, _ in seen}) for label in LABELS if (model, label) in seen
    ]
    return {
        "window_s": window_s,
        "covered_s": span.seconds,
        "classes": [_flow(span, None, label) for label in LABELS],
        "flows": [_flow(span, model, label) for model, label in flows],
        "models": [_model(span, model) for model in _models(span)],
        "columns_ms": COLUMNS_MS,
    }


def history(steps: Sequence[Span]) -> Json:
    """Second by second, oldest first: lists of equal length, None where there is nothing to tell."""
    now_s = steps[-1].last.at_s if steps else 0.0
    return {
        "seconds_ago": [round(now_s - step.last.at_s, 1) for step in steps],
        "classes": [_course(steps, label) for label in LABELS],
        "mean_batch": [_mean(sum_of(list(step.batch_size.values()), BATCH_SIZE_BOUNDS)) for step in steps],
    }


def readings(span: Span) -> Json:
    """Of host, processes and GPUs, now: by metric without its prefix, and label."""
    return {
        f"{name.removeprefix('tickring_')}{f'{{{label}}}' if label else ''}": value
        for (name, label), value in sorted(span.last.readings.items())
    }


def window(seconds: float, span: Span, objectives: Sequence[Objective], state: str) -> Json:
    """One window of the SLO report."""
    return {
        "window_s": seconds,
        "covered_s": span.seconds,
        "state": state,
        "requests": span.ended(),
        "objectives": [_objective(each) for each in objectives],
    }


def recommendation(found: Recommendation) -> Json:
    """One thing to change."""
    return asdict(found)


def _flow(span: Span, model: str | None, label: str) -> Json:
    waits = span.wait_s(model=model, priority=label)
    return {
        **({} if model is None else {"model_name": model}),
        "priority": label,
        "requests_per_s": span.ended(model=model, priority=label) / span.seconds,
        "failed_per_s": span.ended(model=model, priority=label, codes=FAILED) / span.seconds,
        "shed_per_s": span.refused(model=model, priority=label) / span.seconds,
        "depth": span.depth(model=model, priority=label),
        "wait_columns": columns(waits),
        **_quantiles("wait", waits, (50, 99)),
        **_quantiles("request", span.latency_s(model=model, priority=label), (50, 95, 99)),
    }


def _model(span: Span, model: str) -> Json:
    sizes = span.batch_size.get(model, Histogram.empty(BATCH_SIZE_BOUNDS))
    compute = span.batches_s(model=model)
    mean = _mean(sizes)
    return {
        "model_name": model,
        "batches_per_s": sizes.count / span.seconds,
        "rows_per_s": sizes.total / span.seconds,
        **({} if mean is None else {"mean_batch": mean}),
        "target_size": span.last.target.get(model, 0),
        "batch_sizes": [
            {"up_to": int(bound), "batches": count}
            for bound, count in zip(sizes.bounds, sizes.counts, strict=False)
            if count
        ],
        "compute_columns": columns(compute),
        **_quantiles("compute", compute, (50, 99)),
        "buckets": [
            {
                "bucket": bucket,
                "batches": histogram.count,
                **_quantiles("compute", histogram, (50, 95)),
            }
            for (its_model, bucket), histogram in sorted(span.compute_s.items())
            if its_model == model
        ],
    }


def _course(steps: Sequence[Span], label: str) -> Json:
    waits = [step.wait_s(priority=label) for step in steps]
    return {
        "priority": label,
        "requests_per_s": [_rounded(step.ended(priority=label) / step.seconds) for step in steps],
        "wait_p50_ms": [_quantile_ms(each, 0.5) for each in waits],
        "wait_p99_ms": [_quantile_ms(each, 0.99) for each in waits],
        "depth": [step.depth(priority=label) for step in steps],
    }


def _objective(objective: Objective) -> Json:
    optional = ("value", "good_ratio", "promised_ratio", "burn_rate", "budget_left")
    return {
        "name": objective.name,
        "threshold": objective.threshold,
        "state": objective.state,
        **{name: value for name in optional if (value := getattr(objective, name)) is not None},
        "note": objective.note,
        "classes": [
            {"priority": e.priority, "threshold": e.threshold, "value": e.value, "state": e.state}
            for e in objective.classes
        ],
    }


def columns(histogram: Histogram) -> list[int]:
    """Of a histogram of durations: counts up to each of `COLUMNS_S`, and of what is longer."""
    counts = [0] * (len(COLUMNS_S) + 1)
    at = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        while at < len(COLUMNS_S) and bound > COLUMNS_S[at]:
            at += 1
        counts[at] += count
    return counts


def _models(span: Span) -> list[str]:
    return sorted(
        {model for model, _ in span.last.model_ready} | set(span.batch_size) | set(span.last.target)
    )


def _quantiles(what: str, histogram: Histogram, percents: Sequence[int]) -> Mapping[str, float]:
    found = {f"{what}_p{percent}_ms": _quantile_ms(histogram, percent / 100) for percent in percents}
    return {name: value for name, value in found.items() if value is not None}


def _quantile_ms(histogram: Histogram, part: float) -> float | None:
    seconds = histogram.quantile(part)
    return None if seconds is None else _rounded(seconds * 1e3)


def _mean(histogram: Histogram) -> float | None:
    return _rounded(histogram.total / histogram.count) if histogram.count else None


def _rounded(value: float) -> float:
    return round(value, 4)
