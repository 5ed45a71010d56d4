"""What "auto" means, by number of cores."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from scheduler.policy import BatchPlan
from server import sizing
from server.configuration import load_settings
from server.repository import Manifest, SchedulerOverrides, load_repository
from server.settings import bundled_repository
from server.sizing import (
    ENGINE_SPIN_AUTO_US,
    FRONTEND_SPIN_AUTO_US,
    EngineSizes,
    batch_plan,
    bulk_quantum_ns,
    engine_sizes,
    frontend_spin_ns,
    frontends,
)

MS = 1_000_000
SPIN_NS = ENGINE_SPIN_AUTO_US * 1000


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
    assert engine_sizes(settings(), "cpu") == EngineSizes("cpu", instances, 0, spares, 1, spin_ns)


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        ({"instances": 2}, EngineSizes("cpu", 2, 0, 0, 3, SPIN_NS)),
        ({"cpu_threads": 4}, EngineSizes("cpu", 6, 0, 1, 4, SPIN_NS)),
        ({"instances": 64}, EngineSizes("cpu", 64, 0, 0, 1, SPIN_NS)),
    ],
)
def test_what_is_set_is_used(
    on_cores: Callable[[int], None], executor: dict[str, Any], expected: EngineSizes
) -> None:
    """And what is left on auto shares the six cores that eight minus two front ends leave."""
    on_cores(8)
    assert engine_sizes(settings(executor=executor), "cpu") == expected


@pytest.mark.parametrize(
    ("executor", "asked", "instances", "reserved", "threads"),
    [
        ({}, 0, 3, 0, 1),
        ({}, 1, 2, 1, 1),
        ({}, 4, 2, 4, 1),
        ({"instances": 6}, 1, 5, 1, 1),
        ({"instances": 1}, 1, 1, 0, 1),
        ({"cpu_threads": 2}, 0, 3, 0, 2),
    ],
)
def test_instances_of_a_gpu_are_streams(
    on_cores: Callable[[int], None],
    executor: dict[str, Any],
    asked: int,
    instances: int,
    reserved: int,
    threads: int,
) -> None:
    """Two at least for any work, whatever the cores; and none computes on a core of a front end."""
    on_cores(16)
    sizes = engine_sizes(
        settings(executor={"device": "cuda", **executor}, scheduler={"reserved_instances": asked}), "cuda:1"
    )
    assert sizes == EngineSizes("cuda:1", instances, reserved, 0, threads, SPIN_NS)


@pytest.mark.parametrize(
    ("cores", "device", "instances", "spares", "spins"),
    [
        (2, "cpu,cpu", 1, 0, False),
        (3, "cpu,cpu", 1, 0, True),
        (8, "cpu,cpu", 3, 1, True),  # two front ends: a spare beside each
        (8, "cpu,cpu,cpu", 2, 0, True),
        (8, "cpu,cuda:0", 6, 1, True),
        (16, "cpu,cpu,cpu,cpu", 3, 1, True),
    ],
)
def test_engines_on_the_cpu_share_it(
    on_cores: Callable[[int], None], cores: int, device: str, instances: int, spares: int, spins: bool
) -> None:
    """Equal parts of what the front ends leave; spares and spinning as long as there is a core for each."""
    on_cores(cores)
    sizes = engine_sizes(settings(executor={"device": device}), "cpu")
    assert sizes == EngineSizes("cpu", instances, 0, spares, 1, SPIN_NS if spins else 0)


def test_threads_of_engines_on_the_cpu_share_it(on_cores: Callable[[int], None]) -> None:
    """Fourteen cores beside the front ends, seven for each of two engines, three for each instance."""
    on_cores(16)
    sizes = engine_sizes(
        settings(server={"frontends": 2}, executor={"device": "cpu,cpu", "instances": 2}), "cpu"
    )
    assert (sizes.instances, sizes.threads, sizes.spares) == (2, 3, 0)


@pytest.mark.parametrize(
    ("cores", "wanted", "instances", "reserved", "threads"),
    [(8, 0, 6, 0, 1), (8, 1, 5, 1, 1), (8, 5, 1, 5, 1), (8, 16, 1, 5, 1), (3, 1, 1, 1, 1), (2, 1, 1, 0, 1)],
)
def test_reserved_instances_are_some_of_all(
    on_cores: Callable[[int], None], cores: int, wanted: int, instances: int, reserved: int, threads: int
) -> None:
    """One at least takes any work, or bulk would never run; threads are shared by them all."""
    on_cores(cores)
    sizes = engine_sizes(settings(scheduler={"reserved_instances": wanted}), "cpu")
    assert (sizes.instances, sizes.reserved, sizes.threads) == (instances, reserved, threads)


def test_spinning_as_set(on_cores: Callable[[int], None]) -> None:
    """Whatever the cores."""
    on_cores(2)
    assert engine_sizes(settings(scheduler={"spin_us": 250}), "cpu").spin_ns == 250_000


def test_front_ends_as_set(on_cores: Callable[[int], None]) -> None:
    """They leave fewer cores to compute on, but never none."""
    on_cores(4)
    crowded = settings(server={"frontends": 7})
    assert frontends(crowded) == 7
    assert engine_sizes(crowded, "cpu").instances == 1


def test_cores_are_those_this_process_may_use() -> None:
    """Not those of the machine: a container may have fewer."""
    assert 1 <= sizing.cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def manifest() -> Manifest:
    (manifest,) = load_repository(bundled_repository()).manifests
    return manifest


def test_plan_of_the_settings(manifest: Manifest) -> None:
    """Buckets, waits by class, budget and quantum in nanoseconds, and which classes are urgent."""
    own = {"max_batch_size": 8, "latency_budget_ms": 2.5, "bulk_quantum_ms": 4.5}
    assert batch_plan(settings(scheduler=own), manifest) == BatchPlan(
        (1, 2, 4, 8),
        (0, MS, 5 * MS, 10 * MS, 20 * MS),
        2_500_000,
        4_500_000,
        (True, False, False, False, False),
    )


@pytest.mark.parametrize(("quantum_ms", "urgent"), [(4.9, 1), (5, 2), (49, 2), (50, 3), (60_000, 5)])
def test_quantum_divides_urgent_classes_from_bulk(manifest: Manifest, quantum_ms: float, urgent: int) -> None:
    """By their slack, which is 0, 5, 50, 500 and 2000 ms."""
    plan = batch_plan(settings(scheduler={"bulk_quantum_ms": quantum_ms}), manifest)
    assert plan.urgent == (True,) * urgent + (False,) * (5 - urgent)


def test_plan_that_does_not_adapt_has_no_budget(manifest: Manifest) -> None:
    """Then the target is the largest bucket."""
    assert batch_plan(settings(scheduler={"adaptive": False}), manifest).budget_ns is None


def test_manifest_overrides_the_settings(manifest: Manifest) -> None:
    """Its own buckets, budget and quantum; what is urgent is the same for all models."""
    own = SchedulerOverrides(buckets=(1, 3), latency_budget_ms=7, bulk_quantum_ms=100)
    model = Manifest(**{**vars(manifest), "scheduler": own})
    plan = batch_plan(settings(), model)
    assert (plan.buckets, plan.budget_ns, plan.quantum_ns) == ((1, 3), 7 * MS, 100 * MS)
    assert plan.urgent == batch_plan(settings(), manifest).urgent
    assert bulk_quantum_ns(settings()) == 10 * MS


@pytest.mark.parametrize(
    ("cores", "device", "spins"),
    [(1, "cpu", False), (2, "cpu", True), (2, "cpu,cpu", False), (4, "cuda:0", True)],
)
def test_front_ends_look_for_answers_where_each_has_a_core(
    on_cores: Callable[[int], None], cores: int, device: str, spins: bool
) -> None:
    """Unless they are told how long, or not at all."""
    on_cores(cores)
    assert frontend_spin_ns(settings(executor={"device": device})) == (
        FRONTEND_SPIN_AUTO_US * 1000 if spins else 0
    )
    assert frontend_spin_ns(settings(executor={"device": device}, scheduler={"spin_us": 7})) == 7000
    assert frontend_spin_ns(settings(scheduler={"spin_us": 0})) == 0
