"""When the calls of an open loop are sent: drawn beforehand, whatever becomes of the calls.

Written as `poisson:RATE`, `constant:RATE`, `bursts:RATE/SIZE` or `recorded:FILE`; a plain number is a
Poisson process of that rate. Rates are calls per second.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Instants = npt.NDArray[np.float64]

ALLOWED = "RATE, poisson:RATE, constant:RATE, bursts:RATE/SIZE or recorded:FILE"
KINDS = ("poisson", "constant", "bursts", "recorded")
MAX_RATE_PER_S = 1e6


class BadArrivals(ValueError):
    """What was written is none of these; says what is allowed."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`size` is that of a burst; `recorded` are instants from the first on, ascending seconds."""

    kind: str
    rate_per_s: float
    size: int = 1
    recorded: tuple[float, ...] = ()

    def scaled(self, factor: float) -> "Arrivals":
        """The same at a rate so many times as high; recorded ones are played as much faster."""
        recorded = tuple(at_s / factor for at_s in self.recorded)
        return Arrivals(self.kind, self.rate_per_s * factor, self.size, recorded)

    def part(self, index: int, of: int, duration_s: float, seed: int) -> Instants:
        """What one of several processes sends, seconds from the start, ascending; together they send all.

        Of Poisson processes each has one of its own; every n-th call, or burst, of all others.
        """
        rng = np.random.default_rng([seed, index])
        match self.kind:
            case "poisson":
                return _poisson(rng, self.rate_per_s / of, duration_s)
            case "bursts":
                starts = _poisson(rng, self.rate_per_s / self.size / of, duration_s)
                return np.repeat(starts, self.size)
            case "constant":
                every = np.arange(int(duration_s * self.rate_per_s + 1e-9)) / self.rate_per_s
            case _:
                every = np.asarray(self.recorded)
                every = every[every < duration_s]
        return every[index::of]


def parse_arrivals(text: str) -> Arrivals:
    """Raises `BadArrivals`."""
    kind, colon, rest = text.partition(":")
    if not colon:
        kind, rest = "poisson", text
    if kind not in KINDS:
        raise BadArrivals(f"{text!r}: no arrivals, allowed are {ALLOWED}")
    if kind == "recorded":
        return _recorded(Path(rest))
    rate, slash, size = rest.partition("/")
    if (slash != "") != (kind == "bursts"):
        raise BadArrivals(f"{text!r}: no {kind} arrivals, allowed are {ALLOWED}")
    rate_per_s = _number(rate, text)
    if not 0 < rate_per_s <= MAX_RATE_PER_S:
        raise BadArrivals(f"{text!r}: the rate must be over 0, up to {MAX_RATE_PER_S:g} a second")
    burst = _number(size, text) if slash else 1.0
    if burst != int(burst) or not 1 <= burst <= 100_000:
        raise BadArrivals(f"{text!r}: the size of a burst is a whole number from 1 to 100000")
    return Arrivals(kind, rate_per_s, int(burst))


def _poisson(rng: np.random.Generator, rate_per_s: float, duration_s: float) -> Instants:
    # Given their number, the instants of a Poisson process are uniform.
    return np.sort(rng.uniform(0, duration_s, rng.poisson(rate_per_s * duration_s)))


def _recorded(path: Path) -> Arrivals:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArrivals(f"cannot read {path}: {error}") from None
    try:
        instants = np.asarray([float(line) for line in text.split()])
    except ValueError as error:
        raise BadArrivals(f"{path}: {error}; it has an instant in seconds on each line") from None
    if len(instants) < 2 or not np.isfinite(instants).all() or (np.diff(instants) < 0).any():
        raise BadArrivals(f"{path}: needed are two ascending instants or more, in seconds, one on each line")
    instants = instants - instants[0]
    if instants[-1] <= 0:
        raise BadArrivals(f"{path}: all of its instants are the same")
    rate_per_s = (len(instants) - 1) / float(instants[-1])
    return Arrivals("recorded", rate_per_s, recorded=tuple(instants.tolist()))


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadArrivals(f"{whole!r}: {text!r} is no number, allowed are {ALLOWED}") from None
