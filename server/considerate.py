"""Work that stands back for everybody else on these cores.

By a thread of its own, because only who may lower niceness gets back from there: what is done afterwards is
done by others, at full priority.
"""

import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Where others want all of the cores it gets some thirtieth of one; where they do not, what they leave.
NICENESS = 15

T = TypeVar("T")


def done(work: Callable[[], T], *, considerately: bool) -> T:
    """What `work` returns or raises."""
    if not considerately:
        return work()

    def stand_back() -> T:
        # On Linux of this thread. Not where the whole service stands back further than that already.
        if os.getpriority(os.PRIO_PROCESS, 0) < NICENESS:
            os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        return work()

    with ThreadPoolExecutor(1, "considerate") as aside:
        return aside.submit(contextvars.copy_context().run, stand_back).result()
