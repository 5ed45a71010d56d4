"""Garbage collection, in a process of its own: it is a setting of the whole process."""

import subprocess
import sys

from server.collector import MIDDLE_THRESHOLD, OLD_THRESHOLD, YOUNG_THRESHOLD
from tests.server.processes import ENVIRONMENT

SETTLE = """
import gc
from server import collector
collector.settle()
frozen = gc.get_freeze_count()
new = []
new.append(new)
del new
print(frozen > 1000, gc.get_threshold(), len(gc.get_objects()) < 100, gc.collect() > 0, gc.isenabled())
"""


def test_what_lives_at_start_up_is_never_visited_again() -> None:
    """Frozen, so a later collection sees only what is new, and still collects that."""
    done = subprocess.run(
        [sys.executable, "-c", SETTLE],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    thresholds = (YOUNG_THRESHOLD, MIDDLE_THRESHOLD, OLD_THRESHOLD)
    assert done.stdout == f"True {thresholds} True True True\n"
