"""What "auto" means, by number of cores."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from scheduler.policy import BatchPlan
from server import sizing
from server.repository import Manifest, SchedulerOverrides, load_repository
from server.settings import bundled_repository, load_settings
from server.sizing import SPIN_AUTO_US, EngineSizes, batch_plan, engine_sizes, frontends

SPIN_NS = SPIN_AUTO_US * 1000


@pytest.fixture
def on_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretends that this process may run on so many cores."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))

    return pretend


def settings(**tables: Any) -> Any:
    """Defaults, and these."""
    return load_settings(tables, environ={})


@pytest.mark.parametrize(
    ("cores", "expected_frontends", "instances", "spares", "spin_ns"),
    [(1, 1, 1, 0, 0), (2, 1, 1, 1, SPIN_NS), (3, 1, 2, 1, SPIN_NS), (8, 2, 6, 1, SPIN_NS)],
)
def test_auto(
    on_cores: Callable[[int], None],
    cores: int,
    expected_frontends: int,
    instances: int,
    spares: int,
    spin_ns: int,
) -> None:
    """A front end for four cores, a thread on each core that is left, and a spare beside the front ends."""
    on_cores(cores)
    assert frontends(settings()) == expected_frontends
    assert engine_sizes(settings()) == EngineSizes("cpu", instances, spares, 1, spin_ns)


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        ({"instances": 2}, EngineSizes("cpu", 2, 0, 3, SPIN_NS)),
        ({"cpu_threads": 4}, EngineSizes("cpu", 6, 1, 4, SPIN_NS)),
        ({"instances": 64}, EngineSizes("cpu", 64, 0, 1, SPIN_NS)),
        ({"device": "cuda:1"}, EngineSizes("cuda:1", 6, 0, 1, SPIN_NS)),
    ],
)
def test_what_is_set_is_used(
    on_cores: Callable[[int], None], executor: dict[str, Any], expected: EngineSizes
) -> None:
    """And what is left on auto shares the six cores that eight minus two front ends leave."""
    on_cores(8)
    assert engine_sizes(settings(executor=executor)) == expected


def test_spinning_as_set(on_cores: Callable[[int], None]) -> None:
    """Whatever the cores."""
    on_cores(2)
    assert engine_sizes(settings(scheduler={"spin_us": 250})).spin_ns == 250_000


def test_front_ends_as_set(on_cores: Callable[[int], None]) -> None:
    """They leave fewer cores to compute on, but never none."""
    on_cores(4)
    crowded = settings(server={"frontends": 7})
    assert frontends(crowded) == 7
    assert engine_sizes(crowded).instances == 1


def test_cores_are_those_this_process_may_use() -> None:
    """Not those of the machine: a container may have fewer."""
    assert 1 <= sizing.cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def manifest() -> Manifest:
    (manifest,) = load_repository(bundled_repository()).manifests
    return manifest


def test_plan_of_the_settings(manifest: Manifest) -> None:
    """Buckets, waits by class and budget, in nanoseconds."""
    plan = batch_plan(settings(scheduler={"max_batch_size": 8, "latency_budget_ms": 2.5}), manifest)
    assert plan == BatchPlan((1, 2, 4, 8), (0, 10**6, 5 * 10**6, 10**7, 2 * 10**7), 2_500_000)


def test_plan_that_does_not_adapt_has_no_budget(manifest: Manifest) -> None:
    """Then the target is the largest bucket."""
    assert batch_plan(settings(scheduler={"adaptive": False}), manifest).budget_ns is None


def test_manifest_overrides_the_settings(manifest: Manifest) -> None:
    """Its own buckets and budget."""
    own = SchedulerOverrides(buckets=(1, 3), latency_budget_ms=7)
    model = Manifest(**{**vars(manifest), "scheduler": own})
    plan = batch_plan(settings(), model)
    assert (plan.buckets, plan.budget_ns) == ((1, 3), 7_000_000)
