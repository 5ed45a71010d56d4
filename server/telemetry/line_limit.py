"""Keeps a line that is logged again and again from filling the log."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

# Of lines with one event: so many at once, and so many in a second after that. A start, with all its
# processes and models, is far below; a fault that hits every batch or call is far above.
BURST = 100
LINES_PER_S = 10.0


@dataclass(slots=True)
class _Account:
    balance: float
    since_s: float
    suppressed: int = 0


class LineLimit:
    """Counts lines by event, of which a program has so many as there are log calls. For any thread."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def admit(self, event: str) -> int | None:
        """How many lines of this event were left out before this one; None: this one is, too."""
        now_s = self._now_s()
        with self._lock:
            account = self._accounts.get(event)
            if account is None:
                account = self._accounts[event] = _Account(BURST, now_s)
            account.balance = min(BURST, account.balance + (now_s - account.since_s) * LINES_PER_S)
            account.since_s = now_s
            if account.balance < 1:
                account.suppressed += 1
                return None
            account.balance -= 1
            suppressed, account.suppressed = account.suppressed, 0
            return suppressed
