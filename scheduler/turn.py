"""Which of the idle instances leads: looks at the lanes, and sleeps at the gate until something comes.

Any may, one at a time. A reserved instance, which runs urgent work only, leads while no other is idle; as
soon as one is, the reserved one is woken and passes the turn on.
"""

import threading
from collections.abc import Callable


class Turn:
    """The right to lead. `wake` ends the wait of whoever sleeps at the gate; it may be called too often."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition(threading.Lock())
        self._taken = False
        self._taken_by_reserved = False
        self._others_waiting = 0

    def take(self, *, reserved: bool) -> None:
        """Blocks until this thread leads."""
        with self._changed:
            if reserved:
                while self._taken or self._others_waiting:
                    self._changed.wait()
            else:
                self._others_waiting += 1
                if self._taken_by_reserved:
                    self._wake()
                while self._taken:
                    self._changed.wait()
                self._others_waiting -= 1
            self._taken = True
            self._taken_by_reserved = reserved

    def pass_on(self) -> None:
        """Ends this thread's turn."""
        with self._changed:
            self._taken = self._taken_by_reserved = False
            self._changed.notify_all()

    @property
    def wanted(self) -> bool:
        """Whether an instance that is not reserved waits for the turn."""
        return self._others_waiting > 0
