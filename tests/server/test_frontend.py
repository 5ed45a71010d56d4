"""What a front end makes of settings and manifests before it serves."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.priority import PriorityClass
from scheduler.signature import DataType, TensorSpec
from server.configuration import load_settings
from server.frontend import EXIT_BUG
from server.lineup import Lineup, Wishes, line_up
from server.models import ServedModel
from server.repository import Manifest, ModelVersion, Repository, SchedulerOverrides
from server.served import served as make_served
from tests.server.processes import ENVIRONMENT

MANIFEST = Manifest(
    name="m",
    description="a model",
    format="torchscript",
    precision="fp32",
    finite_inputs=False,
    finite_outputs=True,
    inputs=(TensorSpec("x", DataType.FP32, (2,)),),
    outputs=(TensorSpec("y", DataType.INT64, ()),),
    versions=(
        ModelVersion(2, Path("m/2/model.pt"), "a" * 64),
        ModelVersion(10, Path("m/10/model.pt"), "b" * 64),
    ),
)
ROOT = Path(__file__).parents[2]
EVERY_CLASS = [member.label for member in PriorityClass]


def served(*manifests: Manifest, **tables: Any) -> list[ServedModel]:
    """With defaults and these settings, the lineup as the boot message carries it."""
    lineup = line_up(Repository(manifests, None), Wishes(), 16)
    settings = load_settings(tables, environ={})
    return [model.standard for model in make_served(Lineup.from_json(lineup.to_json()), settings)]


def test_model_is_served_at_its_latest_version() -> None:
    """Ten is later than two; all digests are kept, in lanes of the manifests' order."""
    (model, other) = served(MANIFEST, replace(MANIFEST, name="n"))
    assert asdict(model.signature) == asdict(MANIFEST.signature(10))
    assert model.sha256 == {2: "a" * 64, 10: "b" * 64}
    assert (model.index, other.index, other.signature.name) == (0, 1, "n")
    assert (model.description, model.format) == ("a model", "torchscript")


@pytest.mark.parametrize(
    ("slots", "queue_limit", "frontends", "max_rows"),
    [(400, 1000, 1, 100), (400, 60, 1, 60), (400, 60, 4, 15), (400, 3, 4, 1), (64, 64, 1, 16), (3, 64, 1, 1)],
)
def test_one_request_cannot_shut_everybody_else_out(
    slots: int, queue_limit: int, frontends: int, max_rows: int
) -> None:
    """A quarter of the slots, and no more than a front end's share of the smallest queue; at least a row."""
    limits = {label: {"queue_limit": 10_000} for label in EVERY_CLASS}
    limits["market_data_update"] = {"queue_limit": queue_limit}
    (model,) = served(
        MANIFEST,
        server={"frontends": frontends},
        scheduler={"slots_per_frontend": slots, "max_batch_size": 2, "classes": limits},
    )
    assert model.max_rows == max_rows


@pytest.mark.parametrize(
    ("own", "frontends", "max_rows"), [(None, 1, 100), (60, 1, 60), (60, 4, 15), (3, 4, 1), (500, 1, 100)]
)
def test_limit_of_a_model_holds_for_one_request_as_well(
    own: int | None, frontends: int, max_rows: int
) -> None:
    """One that could never be let in is told that it has too many rows, and not to come back later."""
    (model,) = served(
        replace(MANIFEST, scheduler=SchedulerOverrides(queue_limit=own)),
        server={"frontends": frontends},
        scheduler={
            "slots_per_frontend": 400,
            "max_batch_size": 2,
            "classes": {label: {"queue_limit": 10_000} for label in EVERY_CLASS},
        },
    )
    assert (model.queue_limit, model.max_rows) == (own, max_rows)


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        (None, "batch_processing", PriorityClass.BATCH_PROCESSING),
        (None, "high", PriorityClass.REAL_TIME_TRADING),
        ("background_tasks", "high", PriorityClass.BACKGROUND_TASKS),
    ],
)
def test_default_class_is_the_models_then_the_settings(
    own: str | None, default: str, expected: PriorityClass
) -> None:
    """A manifest knows its model better than the operator's default."""
    manifest = replace(MANIFEST, scheduler=SchedulerOverrides(default_priority=own))
    (model,) = served(manifest, scheduler={"default_class": default})
    assert model.default_class is expected


def test_child_without_a_supervisor_ends() -> None:
    """Its control socket ends before the boot message: exit code 1, and nothing is said."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket, sys\n"
            "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "ours.close()\n"
            "sys.argv = ['child', 'frontend', str(theirs.detach())]\n"
            "from server.child import main\n"
            "main()",
        ],
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


# A front end that never serves, in a process that it may end: its partition and its entrance are real. Two
# items are in the lanes and have been answered, so the one that is held enters next.
HOLDS_ONE = """
import asyncio
import numpy as np
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.boot import Boot
from server.frontend import Frontend
from server.configuration import load_settings
from server.lineup import Lineup
from tests.server.world import FrontEnd, request

async def rounds(frontend):
    frontend._held.set()
    letting_in = asyncio.create_task(frontend._let_in())
    while frontend._held.is_set():
        await asyncio.sleep(0)
    letting_in.cancel()

async def main():
    world = FrontEnd()
    world.hold_all_but_two()
    for _ in range(3):
        world.submit(request(priority=PriorityClass.BACKGROUND_TASKS.value))
    (held,) = world.entrance._held[PriorityClass.BACKGROUND_TASKS.index]
    slots = np.empty(2, np.uint32)
    assert world.engine.take(0, 0, 0, slots) == 2
    world.engine.complete(slots, np.ones(2, np.uint8), 0, 0, 0, 1, 2)
    settings = load_settings({}, environ={})
    nothing = Lineup((), (), None).to_json()
    boot = Boot("frontend", 0, 0, -1, (), (), 0, settings.model_dump_json(), nothing, 0)
    frontend = Frontend(boot, settings, None)
    frontend._partition, frontend._entrance = world.partition, world.entrance
    %s
    print("goes on with", world.partition.depths(0), world.entrance.held_rows, len(world.answers))

asyncio.run(main())
"""


def run_front_end(does: str) -> subprocess.CompletedProcess[str]:
    """A process that holds one item and then does this."""
    return subprocess.run(
        [sys.executable, "-c", HOLDS_ONE % does],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(("does", "answered"), [("frontend._woken()", 2), ("await rounds(frontend)", 0)])
def test_held_work_enters_with_completions_and_without(does: str, answered: int) -> None:
    """Those of other front ends make room as well, and nobody wakes this one for them."""
    done = run_front_end(does)
    assert (done.stdout, done.returncode) == (f"goes on with [0, 0, 0, 0, 1] [0, 0, 0, 0, 0] {answered}\n", 0)


@pytest.mark.parametrize(
    "does",
    [
        "held.slots[0] = 999; frontend._woken()",  # a slot that is nobody's cannot be pushed
        "held.slots[0] = 999; await rounds(frontend)",
        "world.partition._pending[:] = [None] * 16; frontend._woken()",  # nobody waits for what comes back
    ],
    ids=["letting in after completions", "letting in without", "delivering completions"],
)
def test_bug_in_delivering_or_letting_in_ends_the_process(does: str) -> None:
    """What it interrupted would hang for ever: better that every call ends now, and the log says why."""
    done = run_front_end(does)
    assert done.returncode == EXIT_BUG, done.stderr
    assert "goes on" not in done.stdout
    assert "cannot deliver completions" in done.stdout
