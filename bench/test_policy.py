"""What one decision costs: the policy alone, with every class of three models queued."""

import statistics

from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Gate
from bench.timing import median_us
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan, ClassBacklog, Dispatch, decide

MODELS = 3
CLASSES = 5
ROUNDS = 2000
MS = 1_000_000
NOW_NS = 10_000 * MS
BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def test_decision(gate: Gate, benchmark: BenchmarkFixture) -> None:
    """Urgent and bulk of three models, all due, deadlines on all: the most there is to look at."""
    latency = LearnedLatency()
    for model in range(MODELS):
        latency.seed(model, {bucket: (300 + 200 * bucket) * 1000 for bucket in BUCKETS})
    plans = [BatchPlan(BUCKETS, (0,) * CLASSES, 5 * MS, 10 * MS)] * MODELS
    backlog = [
        ClassBacklog(model, cls, 20, NOW_NS + cls * MS, NOW_NS - MS, NOW_NS + 100 * MS)
        for model in range(MODELS)
        for cls in range(CLASSES)
    ]
    targets = [16] * MODELS

    def decision() -> None:
        assert isinstance(decide(backlog, plans, targets, latency, NOW_NS), Dispatch)

    def one_pass() -> None:
        assert sum(waiting.depth for waiting in backlog) == 20 * len(backlog)

    benchmark(decision)
    assert benchmark.stats is not None
    gate.check(
        "policy_decision", (statistics.median(benchmark.stats.stats.data) * 1e6, median_us(one_pass, ROUNDS))
    )
