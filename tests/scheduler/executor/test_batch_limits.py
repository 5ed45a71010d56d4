"""Which sizes are allowed after the device ran out of memory, and when larger ones are tried again."""

from scheduler.executor.batch_limits import MOST_RECOVER_NS, RECOVER_NS, BatchLimits

BUCKETS = (1, 2, 4, 8)


class Limits:
    def __init__(self) -> None:
        self.told: list[tuple[int, int | None]] = []
        self.limits = BatchLimits(lambda model, largest: self.told.append((model, largest)))

    def fail(self, bucket: int, now_ns: int, model: int = 0) -> None:
        self.limits.exhausted(model, bucket, BUCKETS, now_ns)

    def at(self, now_ns: int) -> list[tuple[int, int | None]]:
        self.told.clear()
        self.limits.recover(now_ns)
        return self.told


def test_the_next_smaller_size_is_the_limit() -> None:
    """For the model that failed alone."""
    limits = Limits()
    limits.fail(8, 0)
    limits.fail(2, 0, model=3)
    assert limits.told == [(0, 4), (3, 1)]


def test_the_smallest_size_stays_allowed() -> None:
    limits = Limits()
    limits.fail(1, 0)
    assert limits.told == [(0, 1)]


def test_late_failures_of_larger_batches_change_nothing() -> None:
    """Another instance had formed them before it heard of the limit."""
    limits = Limits()
    limits.fail(4, 0)
    limits.fail(8, 1)
    assert limits.told == [(0, 2)]


def test_sizes_come_back_one_by_one() -> None:
    limits = Limits()
    limits.fail(4, 0)
    assert limits.at(RECOVER_NS - 1) == []
    assert limits.at(RECOVER_NS) == [(0, 4)]
    assert limits.at(2 * RECOVER_NS - 1) == []
    assert limits.at(2 * RECOVER_NS) == [(0, 8)]
    assert limits.at(3 * RECOVER_NS) == [(0, None)]
    assert limits.at(99 * RECOVER_NS) == []


def test_each_failed_try_doubles_the_patience_up_to_a_limit() -> None:
    limits = Limits()
    limits.fail(4, 0)
    now, patience = 0, RECOVER_NS
    for _ in range(10):
        assert limits.at(now + patience - 1) == []
        assert limits.at(now + patience) == [(0, 4)]
        now += patience
        limits.fail(4, now)
        patience = min(MOST_RECOVER_NS, 2 * patience)
    assert patience == MOST_RECOVER_NS
