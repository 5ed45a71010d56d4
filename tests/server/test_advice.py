"""Each rule speaks where it should, with its figures, and nowhere else."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from server.settings import Settings
from server.telemetry.advice import (
    CPU,
    DEADLINE_UNREACHABLE,
    GPU_TOTAL,
    GPU_USED,
    QUEUE,
    RULES,
    SLOTS,
    Case,
    Recommendation,
    advise,
)
from server.telemetry.slo import judge
from server.telemetry.totals import Totals
from server.telemetry.windows import Span
from tests.server.made_up import MARKET, MODEL, NORMAL, REAL_TIME, answered, histogram, nothing, sizes


def advice(last: Totals, settings: Settings | None = None) -> list[Recommendation]:
    """On five minutes that end like this."""
    settings = settings or Settings()
    span = Span(nothing(), last)
    return advise(Case(span, settings, judge(span, settings.slo, settings.class_limits)))


def refused(priority: str, reason: str, count: int = 50) -> Totals:
    """So many of two hundred requests."""
    return replace(answered(priority, 200), shed={(MODEL, priority, reason): count})


def bulk_ahead() -> Totals:
    """Late real-time requests among many of another class."""
    urgent, bulk = answered(REAL_TIME, 50, request_s=0.15, wait_s=0.05), answered(NORMAL, 500)
    return replace(
        urgent,
        requests={**urgent.requests, **bulk.requests},
        request_s={**urgent.request_s, **bulk.request_s},
        queue_wait_s={**urgent.queue_wait_s, **bulk.queue_wait_s},
    )


def queued(batch: int) -> Totals:
    """Late, and in the queue for most of it."""
    return answered(count=640, batch=batch, request_s=0.4, wait_s=0.3)


@dataclass(frozen=True)
class Row:
    """A situation, what one rule makes of it, and words that its evidence has."""

    rule: str
    last: Totals
    setting: str
    evidence: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


ROWS = [
    Row(
        "processes_die",
        replace(nothing(300.0), restarts={"engine-0": 3}),
        "telemetry.log_level",
        ("engine-0 3 times",),
    ),
    Row("bulk_crowds_out", bulk_ahead(), "scheduler.bulk_quantum_ms", ("real_time_trading", "91%", "10 ms")),
    Row(
        "batches_stop_at_the_budget",
        replace(queued(16), target={MODEL: 16}),
        "scheduler.latency_budget_ms",
        ("400 ms", "300 ms", "16 rows", "the largest 64"),
    ),
    Row(
        "batches_are_at_the_largest",
        queued(64),
        "executor.instances",
        ("64 rows of at most 64", "0%"),
    ),
    Row(
        "batches_are_at_the_largest",
        replace(queued(64), readings={(CPU, ""): 0.99}),
        "executor.device",
        ("99%",),
    ),
    Row(
        "waiting_for_company",
        answered(MARKET, batch=1, request_s=0.12, wait_s=0.001),
        "scheduler.classes.market_data_update.max_wait_ms",
        ("1 ms on average, of 1 ms", "1 rows"),
    ),
    Row(
        "compute_dominates",
        answered(request_s=0.3, compute_s=0.28),
        "executor.precision",
        ("300 ms", "280 ms", "model"),
    ),
    Row(
        "frontend_bound",
        answered(request_s=0.3, compute_s=0.01, wait_s=0.01),
        "server.frontends",
        ("300 ms", "10 ms of it in the queue and 10 ms in the model"),
    ),
    Row(
        "cpu_saturated",
        replace(answered(), readings={(CPU, ""): 0.97}),
        "executor.cpu_threads",
        ("97%",),
    ),
    Row(
        "deadlines_cannot_be_met",
        refused(REAL_TIME, DEADLINE_UNREACHABLE),
        "scheduler.classes.real_time_trading.default_timeout_ms",
        ("50 of 200", "100 ms"),
    ),
    Row(
        "queues_are_full",
        refused(NORMAL, QUEUE),
        "scheduler.classes.batch_processing.queue_limit",
        ("50 of 200", "1024 items"),
    ),
    Row("slots_are_taken", refused(NORMAL, SLOTS), "scheduler.slots_per_frontend", ("50 of 200", "5120")),
    Row(
        "gpu_memory_is_short",
        replace(answered(), readings={(GPU_USED, "1"): 46 * 2**30, (GPU_TOTAL, "1"): 48 * 2**30}),
        "executor.memory_fraction",
        ("GPU 1", "46.0 of 48.0 GiB", "90%"),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.rule}-{row.setting}")
def test_rule_names_a_setting_and_its_evidence(row: Row) -> None:
    """The setting exists, and the figures are those of the situation."""
    (found,) = [each for each in advice(row.last) if each.rule == row.rule]
    assert found.setting == row.setting
    assert found.setting in Settings().leaves()
    for words in row.evidence:
        assert words in found.evidence
    assert found.text


def test_every_rule_has_a_situation() -> None:
    """In the table above."""
    assert {row.rule for row in ROWS} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(
    "last",
    [
        nothing(300.0),
        answered(),
        answered(count=10, request_s=5.0),
        refused(NORMAL, DEADLINE_UNREACHABLE, count=2),
        refused(NORMAL, QUEUE, count=2),
        refused(NORMAL, SLOTS, count=2),
        refused(NORMAL, "DRAINING"),
        replace(answered(), readings={(CPU, ""): 0.9, (GPU_USED, "0"): 1e9, (GPU_TOTAL, "0"): 48e9}),
        replace(answered(batch=64, count=640, wait_s=0.009), target={MODEL: 64}),
        replace(
            answered(),
            batch_size={MODEL: sizes({1: 100})},
            queue_wait_s={(MODEL, MARKET): histogram({0.001: 9})},
        ),
    ],
)
def test_nobody_is_advised_without_need(last: Totals) -> None:
    """Where promises are kept, little is refused and nothing is short, or too few requests tell nothing."""
    assert advice(last) == []


def test_batches_at_the_budget_and_at_the_largest_are_told_apart() -> None:
    """A budget that lets the largest batch through is not what holds them up."""
    full = advice(queued(64))
    assert [each.rule for each in full] == ["batches_are_at_the_largest"]
