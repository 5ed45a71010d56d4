"""How long a batch takes in the simulator, as a scenario says it; `batch_times` draws from it.

The devices `cpu` and `gpu` are hypothetical: round figures, not measurements, and every one of them can
be set in a scenario.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Microseconds = Annotated[float, Field(ge=0, le=60_000_000)]


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
        return _of_bucket({size: [us] for size, us in self.us.items()}, bucket)


class Recording(_Table):
    """What an engine was seen doing. Seconds count from the start of the run.

    Attributes:
        batches: when it was dispatched, its bucket, its microseconds until outputs were ready, and those of
            the gap from there until the engine took the next; null where there was nothing to take.
        wakes: when something was pushed to the idle engine, and the microseconds until it was taken.
    """

    batches: Annotated[tuple[tuple[float, int, Microseconds, Microseconds | None], ...], Field(min_length=1)]
    wakes: tuple[tuple[float, Microseconds], ...] = ()

    def samples_us(self, bucket: int) -> Sequence[float]:
        """See `_Affine`."""
        by_bucket: dict[int, list[float]] = defaultdict(list)
        for _, size, us, _ in self.batches:
            by_bucket[size].append(us)
        return _of_bucket(by_bucket, bucket)


class _Recorded(_Table):
    """A recording in a JSON file."""

    file: Path

    def recording(self) -> Recording:
        """Reads it. Raises OSError, or ValueError naming what is wrong with it."""
        return Recording.model_validate_json(self.file.read_bytes())

    def samples_us(self, bucket: int) -> Sequence[float]:
        """See `_Affine`."""
        return self.recording().samples_us(bucket)


class Recorded(_Recorded):
    """Drawn at random, per bucket."""

    model: Literal["recorded"]


class Replayed(_Recorded):
    """As it went: every batch takes as long as the recorded one nearest in time, gap and wake likewise.

    Where that one was of another bucket, its time is scaled by the medians of the two: the machine was
    as slow then as it was.
    """

    model: Literal["replayed"]


class Device(_Table):
    """What the instances of every replica run on.

    Attributes:
        noise: sigma of the log-normal factor of every batch, whose median is 1.
        stall_probability: of a batch; a stall lasts exponentially long with mean `stall_us`.
        gap_us: from outputs ready until the instance can take the next batch: scatter, complete, look.
        wake_us: from a push until an idle instance looks.

    What is replayed has noise and stalls already, and gap and wake of its own where they were seen.
    """

    cost: Annotated[
        Affine | HypotheticalCpu | HypotheticalGpu | ByBucket | Recorded | Replayed,
        Field(discriminator="model"),
    ]
    noise: Annotated[float, Field(ge=0, le=2)] = 0.05
    stall_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    stall_us: Microseconds = 0.0
    gap_us: Microseconds = 50.0
    wake_us: Microseconds = 20.0


def _of_bucket(by_bucket: Mapping[int, Sequence[float]], bucket: int) -> Sequence[float]:
    if bucket not in by_bucket:
        known = ", ".join(map(str, sorted(by_bucket)))
        raise ValueError(f"no time for batches of {bucket}, there is one for {known}")
    return by_bucket[bucket]
