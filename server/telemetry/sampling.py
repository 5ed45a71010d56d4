"""Which requests are traced. Decided when a request ends: nothing depends on it before.

1. Where the caller has a trace, by its sampled flag.
2. Else by trace id: the lower half of one that is drawn anew is less than the ratio, as
   OpenTelemetry's TraceIdRatioBased has it. An id is made of the draw only where it is traced.
3. What neither of them takes, if it was slow, failed or was refused: so many of each in a second.
"""

from collections import Counter
from enum import Enum

# Of each kind, in a second, by each front end. A burst shows in as many examples; a day of refusals is a load
# that a collector takes. Each kind has its own, so that refusals, which come by the thousand, hide neither of
# the others.
TAIL_PER_S = 10
# The lower half of a trace id, which the ratio goes by.
DRAW_BITS = 64

_SECOND_NS = 1_000_000_000


class Why(Enum):
    """What a request is traced for; the values are those of its attribute."""

    PARENT = "parent"
    RATIO = "ratio"
    SLOW = "slow"
    FAILED = "failed"
    REFUSED = "refused"


def bound_of(ratio: float) -> int:
    """Draws below this are traced."""
    return round(ratio * (1 << DRAW_BITS))


class Tail:
    """The third rule: counts what it lets through, second by second."""

    def __init__(self) -> None:
        self._since_ns = 0
        self._taken: Counter[Why] = Counter()

    def takes(self, kind: Why, now_ns: int) -> bool:
        """Whether one more of this kind is traced."""
        if now_ns - self._since_ns >= _SECOND_NS:
            self._since_ns = now_ns
            self._taken.clear()
        self._taken[kind] += 1
        return self._taken[kind] <= TAIL_PER_S
