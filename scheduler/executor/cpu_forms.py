"""A model on a CPU in the form in which it computes fastest.

The model itself is torch in FP32, or in the precision that it is asked for. Beside it there may be ONNX
Runtime, in FP32 as well, and torch in BF16 where the precision is to be chosen too. Whatever does not answer
as the model does is out; see `rehearsal`. `contest` measures the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from scheduler.clock import Clock
from scheduler.executor import onnx_library
from scheduler.executor.by_bucket import ByBucket
from scheduler.executor.contest import Contest, Verdict
from scheduler.executor.error_text import first_line, last_line
from scheduler.executor.rehearsal import Rehearsal
from scheduler.executor.runner import Array, DeviceSettings, Runner, load_runner
from scheduler.signature import ModelSignature

AUTO = "auto"
TORCH, ONNX, BF16 = "torch", "onnx", "torch bf16"
# A model that is done sooner has little to gain beside what the engine does for each batch anyhow.
WORTH_IT_NS = 100_000
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's
_NS_PER_MS, _NS_PER_S = 1e6, 1e9


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the form of a model is chosen.

    Attributes:
        backend: "torch", "onnx" wherever it can be, or "auto": whichever is faster.
        buckets: the batch sizes that will be run, ascending.
        budget_ns: how long a batch may take, None for any time.
        samples: real rows to compare on, one array `[n, *shape]` per input.
        clock: what is measured with.
    """

    backend: str
    buckets: Sequence[int]
    budget_ns: int | None
    clock: Clock
    samples: Sequence[Array] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a model is run by.

    Attributes:
        by_bucket: the form for each batch size.
        ms: by batch size and form, where that was measured.
        refused: forms that cannot be, and why.
        seconds: what converting, comparing and measuring took, by the clock given.
    """

    runner: Runner
    by_bucket: dict[int, str]
    ms: dict[int, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def choose(
    model_format: str, file: bytes, signature: ModelSignature, settings: DeviceSettings, wanted: Wanted
) -> Chosen:
    """Loads a verified model file and finds the fastest way to run it.

    Args:
        settings: of the CPU. The precision may also be "auto": FP32 or BF16.

    Raises:
        ModelUnusable: see `load_runner`.
    """
    is_open = settings.precision == AUTO
    as_asked = replace(settings, precision="fp32") if is_open else settings
    model = load_runner(model_format, file, signature, as_asked)
    alone = Chosen(model, dict.fromkeys(wanted.buckets, TORCH))
    others: dict[str, _Form] = {}
    refused: dict[str, str] = {}
    # TF32 is FP32 on a CPU.
    if as_asked.precision in ("fp32", "tf32") and wanted.backend != TORCH:
        if why := _no_onnx(model_format, signature):
            refused[ONNX] = why
        else:
            others[ONNX] = _Form("fp32", partial(_on_onnx, file, signature, settings.threads))
    if is_open and wanted.backend != ONNX:
        if why := _no_bf16(signature):
            refused[BF16] = why
        else:
            narrow = replace(settings, precision="bf16")
            others[BF16] = _Form("bf16", partial(load_runner, model_format, file, signature, narrow))
    if not others:
        return replace(alone, refused=refused)
    return _Choice(model, others, wanted, refused).made(alone)


@dataclass(frozen=True, slots=True)
class _Form:
    """Of the model, before it is loaded. `precision`: how close its answers must be."""

    precision: str
    load: Callable[[], Runner]


class _Choice:
    """Of a form for each batch size. `refused` grows by those that turn out not to be possible."""

    def __init__(
        self, model: Runner, others: dict[str, _Form], wanted: Wanted, refused: dict[str, str]
    ) -> None:
        self._wanted = wanted
        self._others = others
        self._refused = refused
        self._rehearsal = Rehearsal(model, wanted.samples)
        self._forms = {TORCH: model}

    def made(self, alone: Chosen) -> Chosen:
        clock = self._wanted.clock
        started_ns = clock.now_ns()
        contest = Contest(self._forms, self._rehearsal.noise, clock)
        measured = self._wanted.backend != ONNX
        try:
            if measured and contest.lone_ns() < WORTH_IT_NS:
                few = dict.fromkeys(self._others, "too little to gain")
                return replace(alone, refused=self._refused | few)
            for name, form in self._others.items():
                self._admit(name, form)
            verdict = self._decided(contest) if measured else self._preferred()
        except Exception as error:  # the model's own, of any kind: warm-up will tell
            return replace(alone, refused=self._refused | dict.fromkeys(self._others, last_line(error)))
        by_bucket = {bucket: self._confirmed(bucket, name) for bucket, name in verdict.by_bucket.items()}
        ms = {
            bucket: {name: round(ns / _NS_PER_MS, 3) for name, ns in times.items()}
            for bucket, times in verdict.ns.items()
        }
        seconds = round((clock.now_ns() - started_ns) / _NS_PER_S, 3)
        return Chosen(self._runner(by_bucket), by_bucket, ms, self._refused, seconds)

    def _decided(self, contest: Contest) -> Verdict:
        if len(self._forms) == 1:
            return Verdict(dict.fromkeys(self._wanted.buckets, TORCH))
        return contest.decide(self._wanted.buckets, self._wanted.budget_ns)

    def _preferred(self) -> Verdict:
        return Verdict(dict.fromkeys(self._wanted.buckets, ONNX if ONNX in self._forms else TORCH))

    def _admit(self, name: str, form: _Form) -> None:
        """As one that may win, if it loads and answers like the model."""
        try:
            runner = form.load()
            self._rehearsal.check(runner, form.precision)
        except Exception as error:  # whatever a library raises: the model itself still serves
            self._refused[name] = first_line(error)
        else:
            self._forms[name] = runner

    def _confirmed(self, bucket: int, name: str) -> str:
        """The same, or torch where this form fails at this very batch size."""
        if name == TORCH:
            return TORCH
        try:
            self._rehearsal.check_size(self._forms[name], self._others[name].precision, bucket)
        except Exception as error:  # as above
            self._refused[name] = first_line(error)
            return TORCH
        return name

    def _runner(self, by_bucket: dict[int, str]) -> Runner:
        used = set(by_bucket.values())
        if len(used) == 1:
            return self._forms[used.pop()]
        return ByBucket(
            {bucket: self._forms[name] for bucket, name in by_bucket.items()},
            self._forms[TORCH],
            ranges(by_bucket),
        )


def ranges(by_bucket: dict[int, str]) -> str:
    """For the log: "onnx from 1 to 4, torch at 8"."""
    runs: list[tuple[str, list[int]]] = []
    for bucket, name in sorted(by_bucket.items()):
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append(bucket)
    return ", ".join(
        f"{name} at {sizes[0]}" if len(sizes) == 1 else f"{name} from {sizes[0]} to {sizes[-1]}"
        for name, sizes in runs
    )


def _no_onnx(model_format: str, signature: ModelSignature) -> str | None:
    if missing := onnx_library.missing():
        return f"not installed: {', '.join(missing)}"
    if model_format != "torchscript":
        return f"converted is torchscript, not {model_format}"
    return "it has dynamic shapes" if signature.is_dynamic else None


def _no_bf16(signature: ModelSignature) -> str | None:
    if not _cpu_flags() & _BF16_FLAGS:
        return "this CPU has no BF16"
    return "it has dynamic shapes" if signature.is_dynamic else None


def _on_onnx(file: bytes, signature: ModelSignature, threads: int) -> Runner:
    # Here, not above: only where it is installed and asked for.
    from scheduler.executor.onnx_convert import convert
    from scheduler.executor.onnx_runner import OnnxRunner

    return OnnxRunner(convert(file, signature), signature, threads)


@cache
def _cpu_flags() -> frozenset[str]:
    """What Linux says that this CPU can do."""
    words = set[str]()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            words.update(line.partition(":")[2].split())
    return frozenset(words)
