"""Whether a child makes progress. One that hangs is as gone as one that died, but nobody is told of it."""

CHECK_EVERY_S = 0.25


class Progress:
    """Watches the counters of one child: what waits for it, and how often it has done something.

    Time is counted in checks and not on a clock: a supervisor that was stopped for a while, with
    everything else, must not find on its return that nobody has moved.
    """

    def __init__(self, check_every_s: float) -> None:
        self._check_every_s = check_every_s
        self._steps = -1
        self.idle_s = 0.0

    def check(self, waiting: int, steps: int) -> float:
        """Takes a reading; returns for how long the child has done nothing with something before it."""
        if waiting == 0 or steps != self._steps:
            self.idle_s = 0.0
        else:
            self.idle_s += self._check_every_s
        self._steps = steps
        return self.idle_s

    def reset(self) -> None:
        """Another process has taken the place."""
        self._steps = -1
        self.idle_s = 0.0
