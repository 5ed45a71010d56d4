"""Whether to try again, and after how long. Decides only; the client sleeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a prediction is tried again after UNAVAILABLE.

    `attempts` counts the first one, so 1 switches retries off. Without a word from the server the wait
    doubles from `first_wait_s` up to `max_wait_s`, and half of each wait is random, so that clients cut
    off together do not come back together. A server that asks for more than `max_retry_after_s` is not
    waited for. Raises `ValueError` on construction for bounds that make no sense.
    """

    attempts: int = 3
    first_wait_s: float = 0.1
    max_wait_s: float = 2.0
    max_retry_after_s: float = 10.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; at least 1")
        if not 0 <= self.first_wait_s <= self.max_wait_s:
            raise ValueError(
                f"waits are {self.first_wait_s} s to {self.max_wait_s} s; must be 0 <= first <= max"
            )

    def wait_s(
        self, attempt: int, retry_after_s: float | None, remaining_s: float | None, jitter: float
    ) -> float | None:
        """Seconds to wait after `attempt` (1 is the first) failed, or None to give up.

        `retry_after_s` is what the server asked for, `remaining_s` what is left of the caller's timeout
        (None: no timeout), `jitter` a random number in [0, 1).
        """
        if attempt >= self.attempts:
            return None
        if retry_after_s is None:
            longest_s = min(self.first_wait_s * 2.0 ** (attempt - 1), self.max_wait_s)
            wait_s = longest_s * (0.5 + 0.5 * jitter)
        elif retry_after_s <= self.max_retry_after_s:
            wait_s = retry_after_s
        else:
            return None
        if remaining_s is not None and wait_s >= remaining_s:
            return None
        return wait_s
