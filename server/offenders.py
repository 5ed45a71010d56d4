"""Turns away, for a short while, what has made a model fail again and again.

A request that makes a model raise costs its batch several runs more (`scheduler/executor/bisection.py`). A
caller that repeats it would make everybody pay each time, for an answer that is known.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.errors import ModelFailed

# One failure may be an accident: of the device, or of a search for the guilty row that ran out of time.
FAILURES = 2
# Failures further apart than this are not the same incident. A minute is long beside any sensible retry,
# and short beside a deployment that mends the model.
WINDOW_NS = 60_000_000_000
# Repeating an input costs one failed batch per refusal instead of one per call. Short enough that nobody
# has to lift it: whatever was mended is tried again soon.
REFUSAL_NS = 10_000_000_000
# Some hundred bytes each. A caller with more failing inputs than this at a time gets through.
ENTRIES = 1024
DIGEST_BYTES = 16
# The end of a window is its newest row: what differs first between inputs of the same shape.
GLIMPSE_BYTES = 64

Glimpse = tuple[int, int, bytes]


@dataclass(slots=True)
class _Offence:
    """How often an input has failed, without a pause longer than the window, and when it last did."""

    failures: int = 0
    last_ns: int = 0


class Offenders:
    """The inputs that failed lately. Belongs to one front end's event loop; others know nothing of it.

    An input is told by a BLAKE2b digest over the model and all tensors of the request, in the order and
    with all the rows that the caller sent. So a bad row is not recognised among other rows.

    After `FAILURES` within `WINDOW_NS` of each other an input is refused for `REFUSAL_NS`. Then it is let
    in again, and refused again if it fails once more within the window.
    """

    def __init__(self) -> None:
        self._offences: OrderedDict[bytes, _Offence] = OrderedDict()  # the latest to fail goes last
        # Glimpse of a refused input -> end of its refusal. Tells most other inputs from it without hashing.
        self._suspects: OrderedDict[Glimpse, int] = OrderedDict()
        self._refusing_until_ns = 0

    def failed(self, model_index: int, payloads: Sequence[bytes], now_ns: int) -> None:
        """Records that the model raised on this input, or answered NaN or Inf.

        Args:
            payloads: the tensors of the request, as they came, at least one.
        """
        digest = _digest(model_index, payloads)
        offence = self._offences.pop(digest, None)
        if offence is None or now_ns - offence.last_ns > WINDOW_NS:
            offence = _Offence()
        offence.failures += 1
        offence.last_ns = now_ns
        self._offences[digest] = offence
        if len(self._offences) > ENTRIES:
            self._offences.popitem(last=False)
        if offence.failures >= FAILURES:
            self._suspect(_glimpse(model_index, payloads), now_ns)

    def check(self, model_index: int, payloads: Sequence[bytes], now_ns: int) -> None:
        """Raises ModelFailed while this input is refused.

        Costs a comparison while no input is refused, and a look at the size and the last few bytes while
        others are; only what looks like a refused one is hashed, at about a millisecond per megabyte.
        """
        if now_ns >= self._refusing_until_ns:
            return
        if now_ns >= self._suspects.get(_glimpse(model_index, payloads), 0):
            return
        offence = self._offences.get(_digest(model_index, payloads))
        if offence is None or offence.failures < FAILURES:
            return
        left_ns = offence.last_ns + REFUSAL_NS - now_ns
        if left_ns > 0:
            raise ModelFailed(
                f"this input failed {offence.failures} times, it is refused for {left_ns / 1e9:.3g} s more",
                reason="MODEL_ERROR",
            )

    def _suspect(self, glimpse: Glimpse, now_ns: int) -> None:
        self._refusing_until_ns = now_ns + REFUSAL_NS
        self._suspects[glimpse] = self._refusing_until_ns
        self._suspects.move_to_end(glimpse)
        if len(self._suspects) > ENTRIES:
            self._suspects.popitem(last=False)


def _glimpse(model_index: int, payloads: Sequence[bytes]) -> Glimpse:
    first = payloads[0]
    return model_index, len(first), first[-GLIMPSE_BYTES:]


def _digest(model_index: int, payloads: Sequence[bytes]) -> bytes:
    hashed = hashlib.blake2b(model_index.to_bytes(8, "little"), digest_size=DIGEST_BYTES)
    for data in payloads:
        # With its length: the same bytes cut in another place are another input.
        hashed.update(len(data).to_bytes(8, "little"))
        hashed.update(data)
    return hashed.digest()
