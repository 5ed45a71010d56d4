"""When requests arrive: seeded processes, each a table of a scenario.

Every process draws the instants of one run at once, in seconds from its start, ascending and below
`seconds`. The same generator state gives the same instants.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

Instants = npt.NDArray[np.float64]
Rate = Annotated[float, Field(gt=0, le=10_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Process(BaseModel):
    model_config = {"frozen": True, "extra": "forbid", "allow_inf_nan": False}


class Constant(_Process):
    """Evenly spaced; the first one somewhere within the first period."""

    process: Literal["constant"]
    rate_per_s: Rate

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        count = math.ceil(seconds * self.rate_per_s)
        instants = (np.arange(count, dtype=np.float64) + rng.random()) / self.rate_per_s
        return instants[instants < seconds]


class Poisson(_Process):
    """Independent callers, nobody waits for anybody."""

    process: Literal["poisson"]
    rate_per_s: Rate

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        return _poisson(rng, self.rate_per_s, seconds)


class OnOff(_Process):
    """Poisson at one rate while on and at another while off; both last exponentially long."""

    process: Literal["on_off"]
    on_rate_per_s: Rate
    off_rate_per_s: Annotated[float, Field(ge=0, le=10_000_000)] = 0.0
    on_s: Seconds
    off_s: Seconds

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        pieces = [np.empty(0)]
        start = 0.0
        on = bool(rng.random() < self.on_s / (self.on_s + self.off_s))
        while start < seconds:
            lasts = float(rng.exponential(self.on_s if on else self.off_s))
            rate = self.on_rate_per_s if on else self.off_rate_per_s
            pieces.append(start + _poisson(rng, rate, min(lasts, seconds - start)))
            start += lasts
            on = not on
        return np.concatenate(pieces)


class Batches(_Process):
    """Whole batches of requests at Poisson instants, spread evenly over `spread_s`: a screen refreshed."""

    process: Literal["batches"]
    batches_per_s: Rate
    size: Annotated[int, Field(ge=1, le=100_000)]
    spread_s: Annotated[float, Field(ge=0, le=3600)] = 0.0

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        starts = _poisson(rng, self.batches_per_s, seconds)
        within = np.arange(self.size) * (self.spread_s / self.size)
        instants = np.sort((starts[:, None] + within).ravel())
        return instants[instants < seconds]


class MarketOpen(_Process):
    """Poisson at `before_per_s`, jumping to `peak_per_s` at `open_s`, decaying to `plateau_per_s`.

    The rate after the open is plateau + (peak - plateau) exp(-(t - open) / decay).
    """

    process: Literal["market_open"]
    before_per_s: Annotated[float, Field(ge=0, le=10_000_000)]
    peak_per_s: Rate
    plateau_per_s: Rate
    open_s: Annotated[float, Field(ge=0, le=86_400)]
    decay_s: Seconds

    def rate_at(self, at_s: Instants) -> Instants:
        """Requests per second at these instants."""
        since_open = np.maximum(at_s - self.open_s, 0.0)
        decay = np.exp(-since_open / self.decay_s)
        after = self.plateau_per_s + (self.peak_per_s - self.plateau_per_s) * decay
        return np.where(at_s < self.open_s, self.before_per_s, after)

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        # Thinning: of a Poisson process at the highest rate, each instant stays with rate / highest.
        highest = max(self.before_per_s, self.peak_per_s, self.plateau_per_s)
        instants = _poisson(rng, highest, seconds)
        return instants[rng.random(len(instants)) * highest < self.rate_at(instants)]


class Trace(_Process):
    """What was recorded: a text file of one arrival per line, `seconds` or `seconds,class`.

    `holds` says whether the seconds are instants (from any start) or intervals since the line before.
    With `only_class`, the lines of that class. The run ends with the file; nothing is repeated.
    """

    process: Literal["trace"]
    file: Path
    holds: Literal["instants", "intervals"] = "instants"
    only_class: str | None = None

    def draw(self, rng: np.random.Generator, seconds: float) -> Instants:
        del rng  # nothing in a recording is random
        lines = [line.strip() for line in self.file.read_text("utf-8").splitlines()]
        rows = [line.partition(",") for line in lines if line and not line.startswith("#")]
        values = np.array([_seconds_of(self.file, text) for text, _, _ in rows], dtype=np.float64)
        if self.holds == "intervals":
            values = np.cumsum(values)
        elif len(values):
            values = values - values.min()
        if self.only_class is not None:
            values = values[[name.strip() == self.only_class for _, _, name in rows]]
        return np.sort(values[values < seconds])


Process = Annotated[Constant | Poisson | OnOff | Batches | MarketOpen | Trace, Field(discriminator="process")]


def _poisson(rng: np.random.Generator, rate: float, seconds: float) -> Instants:
    # Given their number, the instants of a Poisson process are uniform.
    return np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)


def _seconds_of(file: Path, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{file}: {text!r} must be seconds, 0 or more")
    return value
