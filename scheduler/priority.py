"""Priority classes, and the key that orders items: priority with aging in its plainest form."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class PriorityClass(IntEnum):
    """Most urgent first; values equal `tickring.v1.Priority`."""

    REAL_TIME_TRADING = 1
    MARKET_DATA_UPDATE = 2
    BATCH_PROCESSING = 3
    HISTORICAL_ANALYSIS = 4
    BACKGROUND_TASKS = 5

    @property
    def index(self) -> int:
        """Position in arrays by class, from 0."""
        return self.value - 1


CLASS_COUNT = len(PriorityClass)
ALIASES = {
    "high": PriorityClass.REAL_TIME_TRADING,
    "normal": PriorityClass.BATCH_PROCESSING,
    "low": PriorityClass.BACKGROUND_TASKS,
}


@dataclass(frozen=True, slots=True)
class ClassLimits:
    """What the operator sets for one class.

    Attributes:
        slack_ns: how long the class can stand back; see `key`.
        max_wait_ns: how long its oldest item may wait for a batch to fill.
        queue_limit: most items admitted and not ended, over all front ends.
        default_timeout_ns: of a request that names no deadline.
    """

    slack_ns: int
    max_wait_ns: int
    queue_limit: int
    default_timeout_ns: int


def parse_priority(text: str) -> PriorityClass:
    """A class by name, alias or number. Raises ValueError naming what is allowed."""
    wanted = text.strip().lower()
    if wanted in ALIASES:
        return ALIASES[wanted]
    for member in PriorityClass:
        if wanted in (member.name.lower(), str(member.value)):
            return member
    names = [member.name.lower() for member in PriorityClass]
    raise ValueError(f"{text[:64]!r} is no priority, allowed is {', '.join([*names, *ALIASES])} or 1 to 5")


def key(enqueued_ns: int, limits: ClassLimits) -> int:
    """The urgency of an item, fixed when it is enqueued; the engine always takes the smallest.

    Waiting a nanosecond is worth a nanosecond of slack, so no aging has to happen later: the order of
    two queued items never changes, and nothing that arrives more than the class's aging horizon after
    an item can overtake it.
    """
    return enqueued_ns + limits.slack_ns


def aging_horizon_ns(limits: Sequence[ClassLimits], of: PriorityClass) -> int:
    """How much later than an item of class `of` another can arrive and still be taken before it."""
    return limits[of.index].slack_ns - min(limit.slack_ns for limit in limits)
