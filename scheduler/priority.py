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

    @property
    def label(self) -> str:
        """The name that settings, requests and metrics use."""
        return self.name.lower()


CLASS_COUNT = len(PriorityClass)
ALIASES = {
    "high": PriorityClass.REAL_TIME_TRADING,
    "normal": PriorityClass.BATCH_PROCESSING,
    "low": PriorityClass.BACKGROUND_TASKS,
}
ALLOWED = f"{', '.join([*(member.label for member in PriorityClass), *ALIASES])} or 1 to {CLASS_COUNT}"

# Characters of a caller's text that an error repeats.
_MAX_QUOTED = 64


@dataclass(frozen=True, slots=True)
class ClassLimits:
    """What the operator sets for one class.

    Attributes:
        slack_ns: how long the class can stand back; see `KeyStamp`.
        max_wait_ns: how long its oldest item may wait for a batch to fill.
        queue_limit: most items admitted and not ended, over all front ends.
        default_timeout_ns: of a request that names no deadline.
    """

    slack_ns: int
    max_wait_ns: int
    queue_limit: int
    default_timeout_ns: int


_NS_PER_MS = 1_000_000
# The slots of one front end, as many as it can have in flight.
# Five of them fit the default slots of a front end, so no class can take the last slot of another.
_QUEUE_LIMIT = 1024

# By class index.
DEFAULT_LIMITS = (
    ClassLimits(0, 0, _QUEUE_LIMIT, 100 * _NS_PER_MS),
    ClassLimits(5 * _NS_PER_MS, 1 * _NS_PER_MS, _QUEUE_LIMIT, 200 * _NS_PER_MS),
    ClassLimits(50 * _NS_PER_MS, 5 * _NS_PER_MS, _QUEUE_LIMIT, 1000 * _NS_PER_MS),
    ClassLimits(500 * _NS_PER_MS, 10 * _NS_PER_MS, _QUEUE_LIMIT, 10_000 * _NS_PER_MS),
    ClassLimits(2000 * _NS_PER_MS, 20 * _NS_PER_MS, _QUEUE_LIMIT, 60_000 * _NS_PER_MS),
)


def parse_priority(text: str) -> PriorityClass:
    """A class by name, alias or number. Raises ValueError naming what is allowed."""
    wanted = text.strip().lower()
    if wanted in ALIASES:
        return ALIASES[wanted]
    for member in PriorityClass:
        if wanted in (member.label, str(member.value)):
            return member
    raise ValueError(f"{text[:_MAX_QUOTED]!r} is no priority, allowed is {ALLOWED}")


class KeyStamp:
    """Gives out the keys of one front end: enqueue time plus slack, CLOCK_MONOTONIC nanoseconds.

    The engine always takes the smallest. A key is fixed when the item is enqueued: waiting a nanosecond is
    worth a nanosecond of slack, so no aging has to happen later, the order of two queued items never
    changes, and nothing that arrives more than the class's aging horizon after an item can overtake it.

    A lane is a FIFO that is merged by its head, so its keys must never go back. They would when slack is
    lowered while items are queued; the keys then stand still until time has caught up, which takes as
    long as slack was lowered by.
    """

    def __init__(self, models: int, limits: Sequence[ClassLimits]) -> None:
        self._last = [0] * (models * CLASS_COUNT)
        self.change(limits)

    def change(self, limits: Sequence[ClassLimits]) -> None:
        """Uses other slacks from now on; nothing that is queued moves."""
        self._slack = [limit.slack_ns for limit in limits]

    def key(self, model: int, class_index: int, enqueued_ns: int) -> int:
        """The key of an item that is pushed next to its lane."""
        lane = model * CLASS_COUNT + class_index
        key = max(enqueued_ns + self._slack[class_index], self._last[lane])
        self._last[lane] = key
        return key


def aging_horizon_ns(limits: Sequence[ClassLimits], of: PriorityClass) -> int:
    """How much later than an item of class `of` another can arrive and still be taken before it."""
    return limits[of.index].slack_ns - min(limit.slack_ns for limit in limits)


def urgent_classes(limits: Sequence[ClassLimits], bulk_quantum_ns: int) -> tuple[bool, ...]:
    """By class index: whether it cannot stand back for even one bulk quantum; the others are bulk."""
    return tuple(limit.slack_ns <= bulk_quantum_ns for limit in limits)
