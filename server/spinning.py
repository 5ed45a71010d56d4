"""A front end that looks for completions between two rounds of its event loop, while few rows are out.

To be woken at the eventfd takes tens of microseconds, which a lone call waits for. So after a push the loop
does not sleep for a while: each round looks at its sockets and at the completion rings. It is worth a core
only as long as answers come soon and little is out; with more in flight a wake-up brings many answers.
"""

import asyncio
import os
from collections.abc import Callable

from scheduler import _ring
from scheduler.partition import Partition

# With more rows out, batches form, and one wake-up is for many.
MOST_ROWS = 4
# Of the running mean of how long answers take.
WEIGHT = 1 / 8


class Spin:
    """Of one front end. Belongs to its event loop.

    Attributes:
        limit_ns: how long it looks after the last push, and how soon answers must come lately; 0: never.
    """

    def __init__(self, partition: Partition, deliver: Callable[[Callable[[], object]], None]) -> None:
        """`deliver` runs what ends rows, and what follows from that."""
        self.limit_ns = 0
        self._partition = partition
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._spinning = False
        self._pushed_ns = 0
        self._mean_ns = 0.0

    def pushed(self) -> None:
        """Rows have gone to an engine."""
        self._pushed_ns = _ring.now_ns()
        if not self._spinning and self._is_worth_it():
            self._spinning = True
            self._partition.stay_awake()
            self._loop.call_soon(self._look)

    def ended(self) -> None:
        """Some rows have come back, however that was noticed."""
        # A long pause counts for no more than ten limits, so that it is soon forgotten.
        took_ns = min(_ring.now_ns() - self._pushed_ns, 10 * self.limit_ns)
        self._mean_ns += (took_ns - self._mean_ns) * WEIGHT

    def _is_worth_it(self) -> bool:
        return self._mean_ns < self.limit_ns and 0 < self._partition.rows_out <= MOST_ROWS

    def _look(self) -> None:
        self._deliver(self._partition.drain)
        if self._is_worth_it() and _ring.now_ns() - self._pushed_ns < self.limit_ns:
            os.sched_yield()  # to whoever waits for this core: the caller, or the engine
            self._loop.call_soon(self._look)
        else:
            self._spinning = False
            self._deliver(self._partition.sleep)
