"""Batches of models with dynamic shapes: rows of one shape run together.

A batch is taken from the lanes in the order of its rows' keys, whatever their shapes. Here it is parted into
groups of one shape, in the order of the most urgent row of each, and every group runs as a batch of its own,
in the smallest bucket that holds it. So no tensor mixes shapes, padding is whole rows, and where a group
raises the others are not run again.

The shapes stand in a header before the inputs of each row, and those of the outputs are put before the
outputs; see `ShapeHeader`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from scheduler.dispatcher import Batch
from scheduler.executor.bisection import FailureExtent, Outcomes
from scheduler.executor.instance import HasLayout, Passage, SlotInstance, Slots, check_outputs, scatter_of
from scheduler.executor.runner import Array, DeviceLost
from scheduler.partition import Outcome
from scheduler.signature import ModelSignature

Shapes = Sequence[tuple[int, ...]]
Positions = npt.NDArray[np.intp]


class ByShape(SlotInstance):
    """Runs models with dynamic shapes. What `_pass` is given is always of one shape."""

    def run(self, batch: Batch) -> None:
        """See `Instance`."""
        groups = self._groups(batch)
        if len(groups) == 1:
            super().run(batch)
            return
        deadlines_ns = np.empty(len(batch.slots), np.uint64)
        self._native.deadlines(batch.slots, deadlines_ns)
        outcomes = np.full(len(batch.slots), Outcome.EXPIRED, np.uint8)
        failures: list[tuple[Exception, FailureExtent]] = []
        in_parts = False
        start_ns = self._clock.now_ns()
        for group in groups:
            # The groups before it took their time: nobody waits any more for a row whose deadline has passed.
            alive = group[deadlines_ns[group] >= self._clock.now_ns()]
            if len(alive) == 0:
                continue
            part = replace(batch, slots=batch.slots[alive], bucket=self._bucket_for(batch, len(alive)))
            passage = self._pass_or_bisect(part, failures)
            outcomes[alive] = passage.outcomes
            in_parts |= passage.in_parts
        end_ns = self._clock.now_ns()
        if failures:
            extents = [extent for _, extent in failures]
            self._on_failure(batch, failures[0][0], _sum(extents))
        self._dispatcher.complete(batch, outcomes, start_ns, end_ns, in_parts=in_parts)

    def _pass_or_bisect(self, part: Batch, failures: list[tuple[Exception, FailureExtent]]) -> Passage:
        started_ns = self._clock.now_ns()
        try:
            return self._pass(part.model, part.slots, part.bucket)
        except DeviceLost:
            raise
        except Exception as error:  # the model's own, of any kind, as for a batch of one shape
            outcomes, extent = self._bisect(part)
            self._forget(part.model, part.bucket)
            failures.append((error, extent))
            return Passage(started_ns, self._clock.now_ns(), outcomes, in_parts=True)

    def _groups(self, batch: Batch) -> list[Positions]:
        """The positions of the rows of each shape, by the order in which the batch has them."""
        size_bytes = self._signatures[batch.model].input_header.size_bytes
        found: dict[bytes, list[int]] = {}
        for position, header in enumerate(self._arena.input_rows[batch.slots, :size_bytes]):
            found.setdefault(header.tobytes(), []).append(position)
        return [np.array(group, np.intp) for group in found.values()]

    def _shapes(self, model: int, slots: Slots) -> list[tuple[int, ...]]:
        """Of the inputs of these rows, which all have the same. Raises ValueError, see `ShapeHeader`."""
        header = self._signatures[model].input_header
        return header.decode(self._arena.input_rows[slots[0], : header.size_bytes].tobytes())

    def _gather(self, model: int, slots: Slots, inputs: Sequence[Array]) -> None:
        """Copies the rows into arrays `[bucket, *shape]` of their shape; what is past the last becomes zeros.

        What an earlier batch left there may have had another shape: it is no row of this one.
        """
        for offset, array in zip(self._signatures[model].input_offsets, inputs, strict=True):
            rows = array.reshape(len(array), -1).view(np.uint8)
            self._native.gather_inputs(slots, offset, rows)
            rows[len(slots) :] = 0

    def _scatter_shaped(self, model: int, slots: Slots, bucket: int, outputs: Sequence[Array]) -> Outcomes:
        """Hands outputs of any allowed shape to the slots, and says before them which it is.

        Raises:
            ModelUnusable: they are not what the manifest says. Of some rows only, so it fails those.
        """
        signature = self._signatures[model]
        check_outputs(signature, outputs, bucket)
        shapes = item_shapes(outputs)
        specs = [spec.of_shape(shape) for spec, shape in zip(signature.outputs, shapes, strict=True)]
        outcomes = self._outcomes[: len(slots)]
        scatter_of(self._arena, signature, specs).run(slots, outputs, bucket, outcomes)
        header = signature.output_header
        self._arena.output_rows[slots, : header.size_bytes] = np.frombuffer(header.encode(shapes), np.uint8)
        return outcomes


def item_shapes(arrays: Sequence[HasLayout]) -> list[tuple[int, ...]]:
    """Without the batch dimension."""
    return [array.shape[1:] for array in arrays]


def extremes(signature: ModelSignature) -> tuple[Shapes, Shapes]:
    """The largest and the smallest inputs of one item: those that a model is warmed up on."""
    return [spec.largest for spec in signature.inputs], [spec.smallest for spec in signature.inputs]


def seeds(largest_ns: Mapping[int, int], smallest_ns: Mapping[int, int]) -> dict[int, int]:
    """What to expect of each bucket before real batches have taught better, nanoseconds.

    From what the largest and the smallest shapes take. The level is that of the smallest: what is refused
    because it would take too long teaches nothing, so a guess that is too high might never be corrected. The
    growth with the bucket is that of the largest: a guess that is too low there makes batches too large.
    """
    first = min(largest_ns)
    scale = min(1.0, smallest_ns[first] / max(1, largest_ns[first]))
    return {bucket: int(ns * scale) for bucket, ns in largest_ns.items()}


def _sum(extents: Sequence[FailureExtent]) -> FailureExtent:
    return FailureExtent(
        guilty=sum(extent.guilty for extent in extents),
        undecided=sum(extent.undecided for extent in extents),
        expired=sum(extent.expired for extent in extents),
        runs=sum(extent.runs for extent in extents),
    )
