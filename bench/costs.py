"""How long a batch takes in the simulator, as a scenario says it; `batch_times` draws from it.

The devices `cpu` and `gpu` are hypothetical: round figures, not measurements, and every one of them can
be set in a scenario.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Microseconds = Annotated[float, Field(ge=0, le=60_000_000)]
Instant = Annotated[float, Field(ge=0)]


class _Table(BaseModel):
    model_config = {"frozen": True, "extra": "forbid", "allow_inf_nan": False}


class _Affine(_Table):
    """A launch, and so much per item of the bucket."""

    launch_us: Microseconds
    item_us: Microseconds

    def samples_us(self, bucket: int) -> Sequence[float]:
        """Times of a batch of this bucket before noise, at least one. Raises ValueError: it has none."""
        return [self.launch_us + self.item_us * bucket]


class Affine(_Affine):
    """Of any device."""

    model: Literal["affine"]


class HypotheticalCpu(_Affine):
    """A small recurrent model on one core: 0.5 ms for one window, 0.2 ms per window at 16."""

    model: Literal["cpu"]
    launch_us: Microseconds = 320.0
    item_us: Microseconds = 180.0


class HypotheticalGpu(_Affine):
    """The launch is nearly all of it."""

    model: Literal["gpu"]
    launch_us: Microseconds = 250.0
    item_us: Microseconds = 0.5


class ByBucket(_Table):
    """A figure per bucket, for example what the engine's log says after warm-up (`ms_by_bucket`)."""

    model: Literal["table"]
    us: dict[int, Microseconds]

    def samples_us(self, bucket: int) -> Sequence[float]:
        """See `_Affine`."""
        if bucket not in self.us:
            known = ", ".join(map(str, sorted(self.us)))
            raise ValueError(f"no time for batches of {bucket}, there is one for {known}")
        return [self.us[bucket]]


class Recording(_Table):
    """What an engine was seen doing, in a JSON file. Seconds count from the start of the run.

    Attributes:
        batches: when a batch was dispatched, its bucket, its microseconds until outputs were ready, and
            the gap from there until the engine took the next; null where it had nothing to take.
        wakes: when something was pushed to the idle engine, and the microseconds until it was taken.
    """

    batches: Annotated[
        tuple[tuple[Instant, int, Microseconds, Microseconds | None], ...], Field(min_length=1)
    ]
    wakes: tuple[tuple[Instant, Microseconds], ...] = ()

    def samples_us(self, bucket: int) -> Sequence[float]:
        """See `_Affine`."""
        by_bucket: dict[int, float] = {size: 0.0 for _, size, _, _ in self.batches}
        samples = [us for _, size, us, _ in self.batches if size == bucket]
        if not samples:
            known = ", ".join(map(str, sorted(by_bucket)))
            raise ValueError(f"no time for batches of {bucket}, there is one for {known}")
        return samples


class Recorded(_Table):
    """Batches of a recording, drawn at random per bucket."""

    model: Literal["recorded"]
    file: Path

    def samples_us(self, bucket: int) -> Sequence[float]:
        """See `_Affine`."""
        return self.recording().samples_us(bucket)

    def recording(self) -> Recording:
        """Reads the file. Raises OSError, or ValueError naming what is wrong with it."""
        return Recording.model_validate(json.loads(self.file.read_text("utf-8")))
