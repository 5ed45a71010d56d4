"""Who leads: one thread at a time, and a reserved instance only while no other is idle."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scheduler.turn import Turn

DEADLINE_S = 10.0


class Watched(threading.Condition):
    """Counts who starts to wait; whoever gets the lock after the count finds them waiting.

    The threads in `slow` go on only some time after they were woken.
    """

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        self.waits = threading.Semaphore(0)
        self.slow: dict[str, threading.Event] = {}

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.release()
        notified = super().wait(timeout)
        if may_go_on := self.slow.get(threading.current_thread().name):
            self.release()
            may_go_on.wait(DEADLINE_S)
            self.acquire()
        return notified


class Watch:
    """A turn, who waits for it, how often its leader was woken, and who led, in order."""

    def __init__(self) -> None:
        self.woken = threading.Semaphore(0)
        self.turn = Turn(self.woken.release)
        self.turn._changed = self.watched = Watched()
        self.led: list[str] = []

    def wait_for_a_wait(self) -> None:
        """Until one more thread has found that it must wait."""
        assert self.watched.waits.acquire(timeout=DEADLINE_S)

    @contextmanager
    def thread(self, name: str, *, reserved: bool) -> Iterator[None]:
        """Another thread that leads once; has ended behind the block."""

        def lead() -> None:
            self.turn.take(reserved=reserved)
            self.led.append(name)
            self.turn.pass_on()

        thread = threading.Thread(target=lead, name=name, daemon=True)
        thread.start()
        yield
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"{name} never led"


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_reserved_instance_leads_while_no_other_wants_to(watch: Watch) -> None:
    """At once, again and again; nobody is woken."""
    for _ in range(2):
        watch.turn.take(reserved=True)
        assert not watch.turn.wanted
        watch.turn.pass_on()
    assert not watch.woken.acquire(blocking=False)


def test_reserved_leader_is_woken_and_told_to_pass_on(watch: Watch) -> None:
    """As soon as another instance is idle; that one leads next, and then the reserved one may again."""
    watch.turn.take(reserved=True)
    with watch.thread("other", reserved=False):
        assert watch.woken.acquire(timeout=DEADLINE_S), "the leader sleeps at the gate"
        assert watch.turn.wanted
        assert watch.led == []
        watch.turn.pass_on()
    assert not watch.turn.wanted
    watch.turn.take(reserved=True)


def test_another_leader_is_not_woken(watch: Watch) -> None:
    """Neither by its equals nor by a reserved instance: it leads until there is a batch."""
    watch.turn.take(reserved=False)
    with watch.thread("equal", reserved=False), watch.thread("reserved", reserved=True):
        watch.wait_for_a_wait()
        watch.wait_for_a_wait()
        assert not watch.woken.acquire(blocking=False)
        watch.turn.pass_on()


def test_reserved_instance_does_not_lead_while_another_waits(watch: Watch) -> None:
    """Though it has waited for longer and is faster to see that nobody leads."""
    may_go_on = watch.watched.slow["other"] = threading.Event()
    watch.turn.take(reserved=False)
    with watch.thread("reserved", reserved=True):
        watch.wait_for_a_wait()
        with watch.thread("other", reserved=False):
            watch.wait_for_a_wait()
            watch.turn.pass_on()
            watch.wait_for_a_wait()  # the reserved one, once more
            assert watch.led == []
            may_go_on.set()
    assert watch.led == ["other", "reserved"]


def test_reserved_leader_hands_over_to_a_reserved_one(watch: Watch) -> None:
    """Two of them: neither wants the turn from the other."""
    watch.turn.take(reserved=True)
    with watch.thread("second", reserved=True):
        watch.wait_for_a_wait()
        assert not watch.turn.wanted
        assert not watch.woken.acquire(blocking=False)
        watch.turn.pass_on()
    assert watch.led == ["second"]


def test_one_leads_at_a_time(watch: Watch) -> None:
    """Six threads, two of them reserved, 300 turns each: never two at once, and nobody is left out."""
    leading = threading.Lock()
    turns = [0] * 6

    def lead(index: int) -> None:
        for _ in range(300):
            watch.turn.take(reserved=index < 2)
            assert leading.acquire(blocking=False), "two lead"
            turns[index] += 1
            leading.release()
            watch.turn.pass_on()

    threads = [threading.Thread(target=lead, args=(index,), daemon=True) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert turns == [300] * 6
