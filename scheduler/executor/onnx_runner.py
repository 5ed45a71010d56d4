"""A model in ONNX Runtime, over arrays."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from scheduler.executor.onnx_library import runtime
from scheduler.executor.runner import Array
from scheduler.signature import ModelSignature

_ERRORS_ONLY = 3


@dataclass(frozen=True, slots=True)
class _Bound:
    """A batch size of one thread: where its inputs are read and its outputs written, again and again."""

    session: Any
    binding: Any
    at: list[int]  # addresses of the inputs
    outputs: list[Array]


class _Bindings(threading.local):
    def __init__(self) -> None:
        self.by_rows: dict[int, _Bound] = {}
        self.is_new = True


@dataclass(slots=True)
class _Pool:
    """A session, and the niceness of the threads that compute for it beside the caller."""

    session: Any
    niceness: int = field(default_factory=lambda: os.getpriority(os.PRIO_PROCESS, 0))  # of this thread


class OnnxRunner:
    """Nothing is copied on the way in or out: outputs are written where this thread's last ones were."""

    variant = "onnx"

    def __init__(self, model: bytes, signature: ModelSignature, threads: int) -> None:
        """`threads`: that compute one batch, the caller's among them.

        Raises:
            Exception: whatever ONNX Runtime raises for a model that it cannot run.
        """
        self._signature = signature
        # One thread is the caller's own, and needs no pool that might have to be started again.
        self._again = partial(_session, model, threads) if threads > 1 else None
        self._pool = _Pool(_session(model, threads))
        self._lock = threading.Lock()
        self._bindings = _Bindings()

    @property
    def signature(self) -> ModelSignature:
        """See `Runner`."""
        return self._signature

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """See `Runner`. What is returned is good until this thread's next call with as many rows.

        The GIL is free while it computes.
        """
        by_rows = self._bindings.by_rows
        bound = by_rows.get(len(inputs[0]))
        at = [array.__array_interface__["data"][0] for array in inputs]
        if bound is None or bound.at != at:
            bound = by_rows[len(inputs[0])] = self._bound(inputs, at)
        bound.session.run_with_iobinding(bound.binding)
        return bound.outputs

    def _bound(self, inputs: Sequence[Array], at: list[int]) -> _Bound:
        if self._bindings.is_new:
            self._bindings.is_new = False
            self._raise_priority()
        session = self._pool.session
        binding = session.io_binding()
        for known, array, address in zip(session.get_inputs(), inputs, at, strict=True):
            binding.bind_input(known.name, "cpu", 0, array.dtype, array.shape, address)
        outputs = []
        for known, spec in zip(session.get_outputs(), self._signature.outputs, strict=True):
            array = np.empty((len(inputs[0]), *spec.shape), spec.data_type.dtype)
            address = array.__array_interface__["data"][0]
            binding.bind_output(known.name, "cpu", 0, array.dtype, array.shape, address)
            outputs.append(array)
        return _Bound(session, binding, at, outputs)

    def _raise_priority(self) -> None:
        """Starts the pool again where it was started by a thread that stood back, which it has inherited."""
        if self._again is None:
            return
        with self._lock:
            if os.getpriority(os.PRIO_PROCESS, 0) < self._pool.niceness:
                self._pool = _Pool(self._again())


def _session(model: bytes, threads: int) -> Any:
    library = runtime()
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # Threads that wait for the next batch would take the cores of the front ends meanwhile.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
