"""A front end's event loop that is woken lets who runs on its core finish, rather than take the core away.

gRPC's own thread reads the sockets and wakes the loop for each event, four for a call. A loop that takes
the core at once handles one of them and sleeps again; one that waits until gRPC has read what is there, or
the engine has had its turn, finds several. With a free core it waits for nobody (docs/decisions/0019).
"""

import contextlib
import os


def wake_without_preempting() -> None:
    """Of this thread and those that it starts from now on; on Linux."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return  # whoever runs the service has chosen something else
    with contextlib.suppress(OSError):  # a sandbox may not let us
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
