"""Work that stands back for everybody else on these cores.

By a thread of its own, because only who may lower niceness gets back from there: what is done afterwards is
done by others, at full priority.
"""

import contextlib
import contextvars
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

# Where others want all of the cores it gets some thirtieth of one; where they do not, what they leave.
NICENESS = 15
# So much of a core must be left over for work that gets nothing else.
LEFT_OVER_CORES = 0.3
# How long that is looked for; the kernel counts hundredths of a second.
LOOK_S = 0.2
# Who has waited for an idle core for so long, and longer than he has had one, waits no more.
PATIENCE_S = 2.0

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


def done(work: Callable[[], T], *, considerately: bool) -> T:
    """What `work` returns or raises."""
    if not considerately:
        return work()

    def aside() -> T:
        _stand_back()
        return work()

    with ThreadPoolExecutor(1, "considerate") as executor:
        return executor.submit(contextvars.copy_context().run, aside).result()


def idle_cores(look_s: float = LOOK_S) -> float:
    """How many of the cores that this thread may use nobody did, in the next moment."""
    begun_s, idle_s = time.monotonic(), _idle_s()
    time.sleep(look_s)
    return (_idle_s() - idle_s) / (time.monotonic() - begun_s)


def relieve(pid: int) -> None:
    """Lets threads of this process that stand back for everybody, and starve, have their part of a core.

    To be called every now and then, by another process: all of this one may wait for a lock that a thread
    holds which starves. Without CAP_SYS_NICE and with a RLIMIT_NICE below 5 there is no way back for them,
    and they stay as they are.
    """
    if os.sched_getscheduler(0) == os.SCHED_IDLE:
        return  # the whole service stands back, as its owner wants it
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended, or the kernel does not let us
            if os.sched_getscheduler(int(task.name)) == os.SCHED_IDLE and _starves(task):
                os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


def _starves(task: Path) -> bool:
    ran_ns, waited_ns, _ = map(int, (task / "schedstat").read_text().split())
    return waited_ns > PATIENCE_S * 1e9 + ran_ns


def _stand_back() -> None:
    """On Linux, of this thread."""
    # Not where the whole service stands back further than that already.
    if os.getpriority(os.PRIO_PROCESS, 0) < NICENESS:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    if idle_cores() >= LEFT_OVER_CORES:
        # Everybody else gets a core at once, rather than when this thread's turn is over. Where next to
        # nothing is left over it would never be done, and without privileges there is no way back from here.
        with contextlib.suppress(OSError):  # a sandbox may not let us
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _idle_s() -> float:
    """Of these cores, together, since the machine was started."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    # user, nice, system, idle, iowait: proc_stat(5)
    return sum(int(row[4]) + int(row[5]) for row in rows if row[0] in ours) / _TICKS_PER_S
