"""An execution slot of a device: takes a batch from the slots through the model and back.

What every kind of instance does with a batch is here, how rows pass through its device in `cpu` and `cuda`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent, Outcomes, bisect
from scheduler.executor.runner import Array, DeviceLost, ModelUnusable
from scheduler.signature import ModelSignature, TensorSpec

Slots = npt.NDArray[np.uint32]
# Told once about a batch that raised, before its slots go back: (batch, its first error, extent).
FailureReport = Callable[[Batch, Exception, FailureExtent], None]


class Passage(NamedTuple):
    """Rows that have been through the model, their outputs in their slots.

    Attributes:
        start_ns: when the model started.
        end_ns: when its outputs were ready.
        outcomes: uint8 `[n]`, an `Outcome` per slot; good until the next passage of the instance.
        in_parts: the rows did not run as one batch, so this says nothing about how long one takes.
    """

    start_ns: int
    end_ns: int
    outcomes: Outcomes
    in_parts: bool = False


class Instance(Protocol):
    """One execution slot with buffers of its own. Used by one thread."""

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Runs a batch and hands its slots back, once, whatever the model does.

        Where the batch raises, only the rows that are to blame fail; see `bisection`.

        Raises:
            DeviceLost: nothing was handed back, and this process cannot compute any more.
        """
        ...

    @abstractmethod
    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """Runs every bucket and measures it.

        Returns:
            Bucket to nanoseconds from dispatch to outputs ready: the median of the later rounds.

        Raises:
            ModelUnusable: the model raises, or its outputs are not what its manifest says.
        """
        ...

    @abstractmethod
    def settle(self) -> None:
        """Makes ready what the thread that will run batches needs. By that thread, before its first batch."""
        ...


class SlotInstance(Instance, ABC):
    """What instances on every device have in common."""

    def __init__(
        self,
        arena: Arena,
        dispatcher: Dispatcher,
        signatures: Mapping[int, ModelSignature],
        max_batch: int,
        clock: Clock,
        on_failure: FailureReport,
    ) -> None:
        """`signatures`: by place, the model's index in the arena."""
        self._arena = arena
        self._native = arena.native
        self._dispatcher = dispatcher
        self._clock = clock
        self._on_failure = on_failure
        self._outcomes = np.empty(max_batch, dtype=np.uint8)
        self._signatures = signatures
        self._scatters = {
            place: scatter_of(arena, signature, signature.outputs) for place, signature in signatures.items()
        }
        self._warm: dict[int, Sequence[int]] = dict.fromkeys(signatures, ())

    def run(self, batch: Batch) -> None:
        """See `Instance`."""
        began_ns = self._clock.now_ns()
        try:
            start_ns, end_ns, outcomes, in_parts = self._pass(batch.model, batch.slots, batch.bucket)
        except DeviceLost:
            raise
        except Exception as error:  # the model's own, of any kind: the rows to blame fail, the engine goes on
            outcomes, extent = self._bisect(batch)
            start_ns, end_ns, in_parts = began_ns, self._clock.now_ns(), True
            self._forget(batch.model, batch.bucket)
            self._on_failure(batch, error, extent)
        self._dispatcher.complete(batch, outcomes, start_ns, end_ns, in_parts=in_parts)

    def settle(self) -> None:
        """See `Instance`. Most have nothing to do."""

    @abstractmethod
    def _pass(self, model: int, slots: Slots, bucket: int, *, pad: bool = False) -> Passage:
        """Gathers the rows of these slots, runs the model on them, scatters its outputs to the same slots.

        Args:
            pad: fill the rows past the last slot with zeros, which the model was warmed up on. Otherwise
                they hold what an earlier batch left there.

        Raises:
            DeviceLost: it is the device's fault.
            Exception: whatever the model raises on these rows.
        """

    @abstractmethod
    def _forget(self, model: int, bucket: int) -> None:
        """A row that made the model raise must not come back as the padding of a later batch."""

    def _scatter(self, model: int, slots: Slots, bucket: int, outputs: Sequence[Array]) -> Outcomes:
        outcomes = self._outcomes[: len(slots)]
        self._scatters[model].run(slots, outputs, bucket, outcomes)
        return outcomes

    def _bisect(self, batch: Batch) -> tuple[Outcomes, FailureExtent]:
        """The rows are still in their slots: each part is gathered from there again."""
        deadlines_ns = np.empty(len(batch.slots), np.uint64)
        self._native.deadlines(batch.slots, deadlines_ns)

        def run_part(positions: npt.NDArray[np.intp]) -> Outcomes:
            bucket = self._bucket_for(batch, len(positions))
            return self._pass(batch.model, batch.slots[positions], bucket, pad=True).outcomes

        return bisect(deadlines_ns, run_part, self._clock)

    def _bucket_for(self, batch: Batch, count: int) -> int:
        """The smallest size that was warmed up and holds `count` rows; where none was, the batch's own."""
        return min((b for b in self._warm[batch.model] if b >= count), default=batch.bucket)


def item_rows(array: Array, spec: TensorSpec) -> Array:
    """An array `[n, *shape]` as bytes, one row per item: uint8 `[n, item_bytes]`, no copy."""
    return array.reshape(len(array), -1).view(np.uint8).reshape(len(array), spec.item_bytes)


class HasLayout(Protocol):
    """An array, or what is known of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """With the batch dimension."""
        ...

    @property
    def dtype(self) -> Any:
        """As numpy names it."""
        ...


def check_outputs(signature: ModelSignature, outputs: Sequence[HasLayout], bucket: int) -> None:
    """Raises ModelUnusable when a model's outputs are not what its manifest says."""
    if len(outputs) != len(signature.outputs):
        raise ModelUnusable(
            f"{signature.name} returns {len(outputs)} outputs, its manifest names {len(signature.outputs)}"
        )
    for spec, output in zip(signature.outputs, outputs, strict=True):
        shape = output.shape
        if shape[:1] != (bucket,) or not spec.allows(shape[1:]) or output.dtype != spec.data_type.dtype:
            wanted = ", ".join([str(bucket), *spec.allowed_sizes])
            raise ModelUnusable(
                f"{signature.name} returns {spec.name} as {output.dtype} {list(shape)}, "
                f"its manifest says {spec.data_type.dtype} [{wanted}]"
            )


def in_shapes(signature: ModelSignature, inputs: Sequence[HasLayout]) -> str:
    """Of a model that takes several, these shapes as the end of a phrase; else nothing."""
    if not signature.is_dynamic:
        return ""
    return " as " + ", ".join(
        f"{spec.name} {list(each.shape)}" for spec, each in zip(signature.inputs, inputs, strict=True)
    )


def scatter_of(arena: Arena, signature: ModelSignature, outputs: Sequence[TensorSpec]) -> _ring.Scatter:
    """Hands these outputs to their places in a row. They are the model's, or the same in one shape."""
    must_be_finite = signature.finite_outputs
    return _ring.Scatter(
        arena.native,
        [
            (
                spec.name,
                offset,
                spec.item_bytes,
                spec.data_type.itemsize if must_be_finite and spec.data_type.is_float else 0,
            )
            for spec, offset in zip(outputs, signature.output_offsets, strict=True)
        ],
    )
