"""Whether the service keeps what `[slo]` promises, over the last minutes and the last hour.

A class may stand back by its slack, so that is added to what it is promised: with `p99_ms = 100` and a slack
of 50 ms, 99 of 100 requests of the class have to be answered within 150 ms. Errors are those that the service
is to blame for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler.priority import ClassLimits, PriorityClass
from server.settings import SloTable
from server.telemetry.windows import Span

WINDOWS_S = (60, 300, 3600)
# The window whose state is that of the whole report, and which advice is given for.
JUDGED_S = 300

MET, MISSED, NO_DATA = "met", "missed", "no_data"

ANSWERED = "OK"
# Ends that say that there was more work than the service could do in time.
OVERLOADED = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
# Other codes are the caller's doing: a wrong request, a model that is not there, a call taken back.
FAILED = (*OVERLOADED, "INTERNAL", "UNKNOWN", "DATA_LOSS")

# The setting, and the part of the requests that it is about.
LATENCIES = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1.0))
RATES = ("min_rps", "target_rps")
# Missing this one is no breach of a promise.
WISHES = ("target_rps",)
_FUZZ = 1e-9


@dataclass(frozen=True, slots=True)
class ClassValue:
    """What an objective is for one class: its bound with the class's slack, and what was reached."""

    priority: str
    threshold: float
    value: float
    state: str


@dataclass(frozen=True, slots=True)
class Objective:
    """One promise over one window.

    Attributes:
        name: of the setting, without its table.
        threshold: its value.
        state: MET, MISSED or NO_DATA.
        value: what was reached, in the setting's unit; of a latency None: each class has its own.
        good_ratio: the part of the requests that kept to it; None where nothing can be said.
        promised_ratio: the part that has to.
        burn_rate: bad requests per bad request that is allowed; above 1 the budget is used up before its
            time. None where none is allowed and there is one, or nothing can be said.
        budget_left: the part of the error budget of this window that is left.
        note: for people, often empty.
    """

    name: str
    threshold: float
    state: str
    value: float | None = None
    good_ratio: float | None = None
    promised_ratio: float | None = None
    burn_rate: float | None = None
    budget_left: float | None = None
    note: str = ""
    classes: tuple[ClassValue, ...] = ()


def judge(span: Span, slo: SloTable, limits: Sequence[ClassLimits]) -> tuple[Objective, ...]:
    """Every objective over this time, in the order of the settings. `limits`: by class index."""
    slack_ms = {member.label: limits[member.index].slack_ns / 1e6 for member in PriorityClass}
    return (
        *(_latency(span, name, getattr(slo, name), part, slack_ms) for name, part in LATENCIES),
        *(_rate(span, name, getattr(slo, name), slo.max_error_ratio) for name in RATES),
        _errors(span, slo.max_error_ratio),
    )


def state_of(objectives: Sequence[Objective]) -> str:
    """Of all together: MISSED where a promise is, NO_DATA where nothing is known of any."""
    states = [objective.state for objective in objectives if objective.name not in WISHES]
    if MISSED in states:
        return MISSED
    return MET if MET in states else NO_DATA


def error_ratio(span: Span, *, model: str | None = None, priority: str | None = None) -> float | None:
    """The part that failed, without those that were the caller's mistake; None where there were none."""
    failed = span.ended(model=model, priority=priority, codes=FAILED)
    counted = failed + span.ended(model=model, priority=priority, codes=(ANSWERED,))
    return failed / counted if counted else None


def _latency(
    span: Span, name: str, threshold_ms: float, promised: float, slack_ms: Mapping[str, float]
) -> Objective:
    classes = []
    good = count = 0.0
    for label, slack in slack_ms.items():
        measured = span.latency_s(priority=label)
        bound_ms = threshold_ms + slack
        within, value_s = measured.part_within(bound_ms / 1e3), measured.quantile(promised)
        if within is None or value_s is None:
            continue
        good += within * measured.count
        count += measured.count
        state = MET if within >= promised - _FUZZ else MISSED
        classes.append(ClassValue(label, bound_ms, value_s * 1e3, state))
    if not count:
        return Objective(name, threshold_ms, NO_DATA, promised_ratio=promised)
    ratio = good / count
    return Objective(
        name,
        threshold_ms,
        MET if ratio >= promised - _FUZZ else MISSED,
        good_ratio=ratio,
        promised_ratio=promised,
        burn_rate=_burn(1 - ratio, 1 - promised),
        budget_left=_left(1 - ratio, 1 - promised),
        classes=tuple(classes),
    )


def _rate(span: Span, name: str, threshold: float, max_error_ratio: float) -> Objective:
    """Below its bound it is missed only where more was asked for than was answered."""
    answered = span.ended(codes=(ANSWERED,))
    rate = answered / span.seconds
    overloaded = span.ended(codes=OVERLOADED)
    if rate >= threshold:
        return Objective(name, threshold, MET, rate)
    if not answered and not overloaded:
        return Objective(name, threshold, NO_DATA, rate, note="nothing was asked for")
    if overloaded <= max_error_ratio * (answered + overloaded):
        return Objective(name, threshold, MET, rate, note="no more were asked for")
    turned_away = overloaded / span.seconds
    return Objective(name, threshold, MISSED, rate, note=f"{turned_away:.3g} more a second were not answered")


def _errors(span: Span, most: float) -> Objective:
    ratio = error_ratio(span)
    name = "max_error_ratio"
    if ratio is None:
        return Objective(name, most, NO_DATA, promised_ratio=1 - most)
    codes = {code: span.ended(codes=(code,)) for code in FAILED}
    return Objective(
        name,
        most,
        MET if ratio <= most + _FUZZ else MISSED,
        value=ratio,
        good_ratio=1 - ratio,
        promised_ratio=1 - most,
        burn_rate=_burn(ratio, most),
        budget_left=_left(ratio, most),
        note=", ".join(f"{count} {code}" for code, count in codes.items() if count),
    )


def _burn(bad: float, allowed: float) -> float | None:
    if bad <= _FUZZ:
        return 0.0
    return bad / allowed if allowed > _FUZZ else None


def _left(bad: float, allowed: float) -> float:
    burn = _burn(bad, allowed)
    return 0.0 if burn is None else max(0.0, 1 - burn)
