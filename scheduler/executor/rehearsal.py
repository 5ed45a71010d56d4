"""Rows to try a model on before it serves, and whether another form of it answers as it must.

Ordinary rows are noise, and those that lie beside the model where somebody has put some there. Hostile rows
hold NaN, infinity and the largest numbers: where the model answers those with NaN or infinity, which tells
the caller that something is wrong, so must every form of it.
"""

from collections.abc import Sequence

import numpy as np

from scheduler.executor.parity import errors
from scheduler.executor.runner import Array, Runner
from scheduler.signature import TensorSpec

# Beyond one row and a few: what depends on other rows of its batch would show.
_TRIED_ROWS = (1, 3, 8)
_HUGE = 3e38
_HOSTILE = (np.nan, np.inf, -np.inf)


class Mismatch(Exception):
    """A form of a model does not answer as the model does; its text says where."""


class Rehearsal:
    """Compares runners with the model itself."""

    def __init__(self, model: Runner, samples: Sequence[Array] | None = None) -> None:
        """`samples`: real rows, one array `[n, *shape]` per input."""
        self._model = model
        self._signature = model.signature
        self._samples = samples

    def noise(self, rows: int) -> list[Array]:
        """One array `[rows, *shape]` per input: a half of the rows from 0 to 1, a half around 0.

        Where a model takes whole numbers, they are all 0 and, as indexes, never out of range.
        """
        generator = np.random.default_rng(rows)
        return [_noise(spec, rows, generator) for spec in self._signature.inputs]

    def check(self, form: Runner, precision: str) -> None:
        """On all sorts of rows. Raises Mismatch, or whatever the form raises."""
        for rows in _TRIED_ROWS:
            self.check_size(form, precision, rows)
        if self._samples is not None:
            self._compare(form, precision, self._samples, "on the samples")
        self._check_hostile(form)

    def check_size(self, form: Runner, precision: str, rows: int) -> None:
        """At one batch size. Raises as `check` does."""
        self._compare(form, precision, self.noise(rows), f"on {rows} rows of noise")

    def _compare(self, form: Runner, precision: str, inputs: Sequence[Array], where: str) -> None:
        wanted, got = self._answers(form, inputs)
        ordinary = _finite_rows(wanted)
        if not ordinary.any():
            raise Mismatch(f"the model has no answer {where}, so nothing can be compared")
        self._check_flagged(wanted, got, where)
        for found in errors(
            self._signature, [each[ordinary] for each in wanted], [each[ordinary] for each in got]
        ):
            if not found.is_within(precision):
                raise Mismatch(
                    f"{found.name} is off by {found.worst:.1e} (worst) and {found.rms:.1e} (rms) {where}"
                )

    def _check_hostile(self, form: Runner) -> None:
        generator = np.random.default_rng(0)
        inputs = self.noise(2 * len(_HOSTILE) + 1)
        for spec, array in zip(self._signature.inputs, inputs, strict=True):
            if not spec.data_type.is_float:
                continue
            flat = array.reshape(len(array), -1)
            for row, value in enumerate(_HOSTILE):
                flat[row, generator.integers(flat.shape[1])] = value
                flat[len(_HOSTILE) + row, -1] = value
            flat[-1] = np.where(generator.random(flat.shape[1]) < 0.5, -1, 1) * min(
                _HUGE, float(np.finfo(flat.dtype).max)
            )
        self._check_flagged(*self._answers(form, inputs), "on hostile rows")

    def _check_flagged(self, wanted: Sequence[Array], got: Sequence[Array], where: str) -> None:
        if (_finite_rows(got) & ~_finite_rows(wanted)).any():
            raise Mismatch(f"it answers in numbers what the model answers with NaN or infinity, {where}")

    def _answers(self, form: Runner, inputs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        # Copies: the next call may write to the same memory.
        return [each.copy() for each in self._model.run(inputs)], [each.copy() for each in form.run(inputs)]


def _noise(spec: TensorSpec, rows: int, generator: np.random.Generator) -> Array:
    shape = (rows, *spec.largest)
    if not spec.data_type.is_float:
        return np.zeros(shape, spec.data_type.dtype)
    array = generator.standard_normal(shape)
    array[::2] = generator.random(array[::2].shape)
    return array.astype(spec.data_type.dtype)


def _finite_rows(outputs: Sequence[Array]) -> Array:
    """bool `[n]`: all outputs of the row are finite."""
    flags = np.ones(len(outputs[0]), np.bool_)
    for each in outputs:
        flags &= np.isfinite(each.reshape(len(each), -1)).all(axis=1)
    return flags
