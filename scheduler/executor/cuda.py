"""CUDA instances: a stream with buffers of its own, and a thread that launches and waits for it.

The thread that launched a batch is also the one that waits for its end. Several instances overlap: while
one waits, without the GIL, another gathers or launches.
"""

import mmap
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scheduler.arena import Arena
from scheduler.clock import Clock
from scheduler.dispatcher import Dispatcher
from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.cuda_buffers import Buffers, Feed, MappedFeed, StagedFeed
from scheduler.executor.cuda_calls import Array, CudaCalls, NotMapped, Tensor
from scheduler.executor.cuda_faults import Fault
from scheduler.executor.cuda_program import Plain, Program, graph_programs
from scheduler.executor.instance import FailureReport, Passage, SlotInstance, Slots, check_outputs, item_rows
from scheduler.executor.runner import DeviceLost, DeviceModel, ModelUnusable

# TorchScript compiles and optimises in its first calls of a shape, cuDNN and cuBLAS choose and allocate: all
# of that must be over before a capture.
SETTLING_LAUNCHES = 3
# Of the outputs of two ways to launch the same kernels, relative to the largest output.
SAME_WITHIN = 1e-3


class Notes(Protocol):
    """Where an instance tells what it found; a structlog logger is one."""

    def info(self, event: str, **facts: Any) -> object:
        """Worth knowing."""
        ...

    def warning(self, event: str, **facts: Any) -> object:
        """It works, but not as well as it could."""
        ...


@dataclass(frozen=True, slots=True)
class MappedSlab:
    """Page-locked memory that kernels read: the arena's inputs, and zeros of the same shape to try it on."""

    inputs: Tensor
    trial: Tensor
    trial_rows: Array


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """What the instances of one device share.

    Attributes:
        slab: None where it cannot be mapped.
        graphs: whether CUDA graphs may be used.
    """

    calls: CudaCalls
    slab: MappedSlab | None
    graphs: bool
    limits: BatchLimits
    notes: Notes


def map_slab(calls: CudaCalls, arena: Arena, max_batch: int, notes: Notes) -> MappedSlab | None:
    """Registers the arena's input slab with the driver, once per process; None if that is refused."""
    # On pages of its own, as the slab is.
    shape = (max_batch, arena.native.input_row_bytes)
    trial_rows = np.frombuffer(mmap.mmap(-1, shape[0] * shape[1]), dtype=np.uint8).reshape(shape)
    try:
        trial = calls.mapped(trial_rows)  # first: if this is refused, the slab is left alone
        return MappedSlab(calls.mapped(arena.input_rows), trial, trial_rows)
    except NotMapped as error:
        notes.warning("input slab is not mapped, batches are staged in pinned memory", reason=str(error))
        return None


class CudaInstance(SlotInstance):
    """Owns a stream, and per model its buffers and one program per bucket: the fastest that was found."""

    def __init__(
        self,
        arena: Arena,
        dispatcher: Dispatcher,
        models: Mapping[int, DeviceModel],
        clock: Clock,
        on_failure: FailureReport,
        device: CudaDevice,
        *,
        max_batch: int,
        urgent: bool = False,
    ) -> None:
        """Args:
        models: by place, the model's index in the arena.
        max_batch: of any model.
        urgent: its stream goes before the others.
        """
        signatures = {place: model.signature for place, model in models.items()}
        super().__init__(arena, dispatcher, signatures, max_batch, clock, on_failure)
        self._models = models
        self._device = device
        self._calls = device.calls
        self._stream = device.calls.stream(urgent=urgent)
        self._buffers: dict[int, Buffers] = {}
        self._programs: dict[int, dict[int, Program]] = {place: {} for place in models}
        # What a thread launches before its first batch; see `settle`. By model and bucket.
        self._to_settle: dict[tuple[int, int], Plain] = {}

    def warm_up(self, model: int, buckets: Sequence[int], rounds: int) -> dict[int, int]:
        """See `Instance`. Of sizes that do not fit the device's memory there is none in the answer.

        Raises:
            DeviceLost: the device failed.
        """
        name = self._models[model].signature.name
        measured: dict[int, int] = {}
        item_bytes = 0.0
        for bucket in buckets:
            free = self._calls.free_bytes()
            if item_bytes * bucket > free:
                reason = f"{bucket} rows need about {item_bytes * bucket:.0f} bytes, {free} are free"
                self._device.notes.warning("batches are limited by memory", model=name, reason=reason)
                break
            try:
                if model not in self._buffers:
                    self._calls.synchronize()  # the model was loaded on another stream
                    self._make_buffers(model, buckets[-1])
                measured[bucket], peak_bytes = self._prepare(model, bucket, rounds)
            except (ModelUnusable, DeviceLost):
                raise
            except Exception as error:
                if self._fault(error) is Fault.MODEL:
                    raise ModelUnusable(f"{name} fails on {bucket} rows of zeros: {error}") from error
                self._calls.release_cache()
                self._device.notes.warning("batches are limited by memory", model=name, reason=str(error))
                break
            item_bytes = peak_bytes / bucket
            self._warm[model] = tuple(measured)
        if not measured:
            raise ModelUnusable(f"{name} does not fit the device's memory, not even for {buckets[0]} rows")
        return measured

    def settle(self) -> None:
        """See `Instance`. cuBLAS and cuDNN have handles, and what cuDNN found the fastest, per thread.

        So what is not in a graph runs once, and of every model at least its smallest bucket.
        """
        try:
            with self._calls.on(self._stream):
                for (model, bucket), plain in self._to_settle.items():
                    self._buffers[model].forget(bucket)
                    self._run(plain)
        except Exception as error:
            self._fault(error)
            raise

    def _pass(self, model: int, slots: Slots, bucket: int, *, pad: bool = False) -> Passage:
        try:
            return self._launch(model, slots, bucket, pad=pad)
        except Exception as error:
            if self._fault(error) is Fault.MODEL:
                raise
        self._calls.release_cache()
        self._device.limits.exhausted(model, bucket, self._warm[model], self._clock.now_ns())
        return self._in_smaller_parts(model, slots, bucket, pad=pad)

    def _launch(self, model: int, slots: Slots, bucket: int, *, pad: bool) -> Passage:
        program = self._programs[model][bucket]
        program.feed.fill(slots, bucket, pad=pad)
        start_ns = self._clock.now_ns()
        with self._calls.on(self._stream):
            program.launch()
        self._calls.finish(self._stream)
        end_ns = self._clock.now_ns()
        outputs = self._buffers[model].fetched(bucket)
        return Passage(start_ns, end_ns, self._scatter(model, slots, bucket, outputs))

    def _in_smaller_parts(self, model: int, slots: Slots, bucket: int, *, pad: bool) -> Passage:
        """What did not fit as one batch, in parts of the next smaller size; those again if need be."""
        smaller = max((size for size in self._warm[model] if size < bucket), default=None)
        if smaller is None:
            raise DeviceLost(f"out of memory for {bucket} rows, the smallest batch there is")
        start_ns = self._clock.now_ns()
        outcomes = np.empty(len(slots), dtype=np.uint8)
        for at in range(0, len(slots), smaller):
            part = slots[at : at + smaller]
            outcomes[at : at + len(part)] = self._pass(model, part, smaller, pad=pad).outcomes
        return Passage(start_ns, self._clock.now_ns(), outcomes, in_parts=True)

    def _forget(self, model: int, bucket: int) -> None:
        self._buffers[model].forget(bucket)

    def _fault(self, error: Exception) -> Fault:
        """MODEL or MEMORY. Raises DeviceLost where it is neither."""
        fault = self._calls.fault(error)
        if fault is Fault.LOST:
            raise DeviceLost(f"{type(error).__name__}: {error}") from error
        return fault

    # -- warm-up ------------------------------------------------------------------------------

    def _make_buffers(self, model: int, max_batch: int) -> None:
        signature = self._models[model].signature
        with self._calls.on(self._stream):
            buffers = Buffers(self._calls, signature, max_batch)
        self._calls.finish(self._stream)
        self._buffers[model] = buffers

    def _prepare(self, model: int, bucket: int, rounds: int) -> tuple[int, int]:
        """Finds the fastest program of a bucket; its nanoseconds, and the bytes a plain launch allocates.

        Everything is tried on zeros, which every model must bear. The slab is not: after a restart it may
        hold the very row that ended the engine before this one.
        """
        signature, buffers = self._models[model].signature, self._buffers[model]
        with self._calls.on(self._stream):
            staged = StagedFeed(self._calls, self._native, signature, buffers)
            plain = Plain(self._models[model], buffers, staged, bucket)
            plains = [plain]
            # Before they are copied: a copy would take other shapes and dtypes without a word.
            check_outputs(signature, [self._calls.layout(output) for output in plain.compute()], bucket)
            if (trial := self._trial_feed(model, bucket)) is not None:
                plains.append(Plain(self._models[model], buffers, trial, bucket))
            for each in plains:
                for _ in range(SETTLING_LAUNCHES):
                    self._run(each)
            # Not of the first launch: libraries allocate workspaces then, which they keep.
            peak_bytes = self._calls.peak_bytes(lambda: self._run(plain))
            best: Program = plain
            best_ns, expected = self._measure(model, plain, bucket, rounds)
            for program in (*plains[1:], *self._graphs(model, plains, bucket)):
                ns, outputs = self._measure(model, program, bucket, rounds)
                if not _same(outputs, expected):
                    self._note_refusal(
                        model, bucket, program.name, "its outputs differ from those of a plain launch"
                    )
                elif ns < best_ns:
                    best, best_ns = program, ns
            self._programs[model][bucket] = self._on_real_slab(model, best, bucket, plain)
            if isinstance(best, Plain) or not self._warm[model]:
                self._to_settle[model, bucket] = plain
        self._device.notes.info(
            "bucket is warm",
            model=signature.name,
            bucket=bucket,
            program=self._programs[model][bucket].name,
            us=best_ns // 1000,
        )
        return best_ns, peak_bytes

    def _graphs(self, model: int, plains: Sequence[Plain], bucket: int) -> Iterator[Program]:
        """Each is captured when it is asked for."""
        if self._device.graphs:
            yield from graph_programs(
                self._calls,
                self._stream,
                plains,
                self._buffers[model],
                bucket,
                lambda name, error: self._refused(model, bucket, name, error),
            )

    def _trial_feed(self, model: int, bucket: int) -> Feed | None:
        """A mapped feed over the trial rows; None without a slab, or if it brings other rows than asked."""
        slab = self._device.slab
        if slab is None:
            return None
        signature, buffers = self._models[model].signature, self._buffers[model]
        feed = MappedFeed(self._calls, slab.trial, signature, buffers)
        rows = slab.trial_rows[:bucket]
        # Every byte differs from its neighbours in the row and above: row i starts at byte 7 i of a pattern.
        row_bytes = rows.shape[1]
        pattern = np.resize(np.arange(251, dtype=np.uint8), 7 * bucket + row_bytes)
        rows[:] = np.lib.stride_tricks.sliding_window_view(pattern, row_bytes)[: 7 * bucket : 7]
        feed.fill(np.arange(bucket, dtype=np.uint32)[::-1], bucket)
        feed.enqueue(bucket)
        for host, device in zip(buffers.host_inputs, buffers.inputs, strict=True):
            self._calls.copy(host.tensor[:bucket], device[:bucket])
        self._calls.finish(self._stream)
        right = all(
            np.array_equal(
                item_rows(host.array[:bucket], spec), rows[::-1, offset : offset + spec.item_bytes]
            )
            for spec, offset, host in zip(
                signature.inputs, signature.input_offsets, buffers.host_inputs, strict=True
            )
        )
        rows[:] = 0
        buffers.forget(bucket)
        if not right:
            self._note_refusal(model, bucket, feed.name, "rows did not arrive as they were written")
            return None
        return feed

    def _on_real_slab(self, model: int, best: Program, bucket: int, plain: Plain) -> Program:
        """The same program, reading the arena's slab instead of the trial rows. It is not run here."""
        slab = self._device.slab
        if slab is None or best.feed is plain.feed:
            return best
        feed = MappedFeed(self._calls, slab.inputs, self._models[model].signature, self._buffers[model])
        real = Plain(self._models[model], self._buffers[model], feed, bucket)
        if best.name == real.name:
            return real
        for program in self._graphs(model, [real], bucket):
            if program.name == best.name:
                return program
        return real  # its capture went well a moment ago; the reason why not now has been told

    def _run(self, program: Program) -> None:
        program.launch()
        self._calls.finish(self._stream)

    def _measure(self, model: int, program: Program, bucket: int, rounds: int) -> tuple[int, Sequence[Array]]:
        """The median over the rounds, nanoseconds, with the host's part in it; and the outputs."""
        slots = (np.arange(bucket) % self._native.slots).astype(np.uint32)
        times = []
        for _ in range(rounds):
            started_ns = self._clock.now_ns()
            program.feed.fill(slots, bucket)
            filled_ns = self._clock.now_ns()
            self._buffers[model].forget(bucket)  # zeros again
            launched_ns = self._clock.now_ns()
            self._run(program)
            times.append(self._clock.now_ns() - launched_ns + filled_ns - started_ns)
        outputs = [output.copy() for output in self._buffers[model].fetched(bucket)]
        return int(statistics.median(times)), outputs

    def _refused(self, model: int, bucket: int, program: str, error: Exception) -> None:
        """A capture failed. Raises DeviceLost where the device is gone with it."""
        if self._fault(error) is Fault.MEMORY:
            self._calls.release_cache()
        self._note_refusal(model, bucket, program, str(error))

    def _note_refusal(self, model: int, bucket: int, program: str, reason: str) -> None:
        name = self._models[model].signature.name
        self._device.notes.warning(
            "program is not used", model=name, bucket=bucket, program=program, reason=reason
        )


def _same(outputs: Sequence[Array], expected: Sequence[Array]) -> bool:
    for output, wanted in zip(outputs, expected, strict=True):
        if output.dtype.kind != "f":
            if not np.array_equal(output, wanted):
                return False
            continue
        scale = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted)))
        if not np.allclose(output, wanted, rtol=SAME_WITHIN, atol=SAME_WITHIN * scale, equal_nan=True):
            return False
    return True
