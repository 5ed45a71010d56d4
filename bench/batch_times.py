"""The times of one replica's batches: drawn at random, or replayed."""

import statistics
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from bench.costs import Device, Replayed

# Random numbers are drawn in blocks: a call of numpy per batch would cost more than the rest of it.
_BLOCK = 4096


class BatchTimes(Protocol):
    """Instants are seconds from the start of the run."""

    def typical_ns(self) -> dict[int, int]:
        """By bucket: what warm-up would find."""
        ...

    def next_ns(self, bucket: int, at_s: float) -> tuple[int, int]:
        """Of a batch that is dispatched then: until outputs are ready, and the gap after it."""
        ...

    def wake_ns(self, at_s: float) -> int:
        """From a push then until an idle instance looks."""
        ...


def batch_times(device: Device, buckets: Sequence[int], rng: np.random.Generator) -> BatchTimes:
    """Of a device. Raises ValueError for a bucket without figures."""
    if isinstance(device.cost, Replayed):
        return ReplayedTimes(device, device.cost, buckets)
    return DrawnTimes(device, buckets, rng)


class DrawnTimes:
    """A sample of the bucket, times noise, plus a stall now and then."""

    def __init__(self, device: Device, buckets: Sequence[int], rng: np.random.Generator) -> None:
        self._samples_us = {bucket: device.cost.samples_us(bucket) for bucket in buckets}
        self._gap_ns = int(device.gap_us * 1000)
        self._wake_ns = int(device.wake_us * 1000)
        self._picks = _uniform(rng)
        self._factors = _factors(device, rng)
        self._stalls_us = _stalls_us(device, rng)

    def typical_ns(self) -> dict[int, int]:
        """See `BatchTimes`."""
        return {bucket: int(statistics.median(us) * 1000) for bucket, us in self._samples_us.items()}

    def next_ns(self, bucket: int, at_s: float) -> tuple[int, int]:
        """See `BatchTimes`; the same at any time."""
        del at_s
        samples = self._samples_us[bucket]
        us = samples[0] if len(samples) == 1 else samples[int(next(self._picks) * len(samples))]
        us = us * next(self._factors) + next(self._stalls_us)
        return max(1, int(us * 1000)), self._gap_ns

    def wake_ns(self, at_s: float) -> int:
        """See `BatchTimes`; the same at any time."""
        del at_s
        return self._wake_ns


class ReplayedTimes:
    """See `Replayed`."""

    def __init__(self, device: Device, cost: Replayed, buckets: Sequence[int]) -> None:
        recording = cost.recording()
        self._typical_us = {bucket: statistics.median(recording.samples_us(bucket)) for bucket in buckets}
        self._batches = sorted(recording.batches, key=lambda batch: batch[0])
        self._at_s = [batch[0] for batch in self._batches]
        self._wakes = sorted(recording.wakes)
        self._woken_at_s = [wake[0] for wake in self._wakes]
        self._gap_us = device.gap_us
        self._wake_us = device.wake_us

    def typical_ns(self) -> dict[int, int]:
        """See `BatchTimes`."""
        return {bucket: int(us * 1000) for bucket, us in self._typical_us.items()}

    def next_ns(self, bucket: int, at_s: float) -> tuple[int, int]:
        """See `BatchTimes`."""
        _, size, us, gap_us = self._batches[_nearest(self._at_s, at_s)]
        if size != bucket:
            us *= self._typical_us[bucket] / self._typical_us[size]
        return max(1, int(us * 1000)), int((self._gap_us if gap_us is None else gap_us) * 1000)

    def wake_ns(self, at_s: float) -> int:
        """See `BatchTimes`."""
        if not self._wakes:
            return int(self._wake_us * 1000)
        return int(self._wakes[_nearest(self._woken_at_s, at_s)][1] * 1000)


def _nearest(ascending: Sequence[float], value: float) -> int:
    after = bisect_left(ascending, value)
    if after == len(ascending) or (after and value - ascending[after - 1] < ascending[after] - value):
        return after - 1
    return after


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(_BLOCK).tolist()


def _factors(device: Device, rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from np.exp(device.noise * rng.standard_normal(_BLOCK)).tolist()


def _stalls_us(device: Device, rng: np.random.Generator) -> Iterator[float]:
    while True:
        stalled = rng.random(_BLOCK) < device.stall_probability
        yield from (stalled * rng.exponential(device.stall_us, _BLOCK)).tolist()
