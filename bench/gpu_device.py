"""The device part: whole windows from slot to slot, by model, precision, program, streams and batch size."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.gpu_models import BUNDLED, ModelFile, model_file, parameters
from bench.gpu_path import Crew, Rig, frozen_garbage, sizes_up_to
from bench.gpu_results import Budget, Results, Row, best
from bench.gpu_target import Notebook, Target, Wanted
from bench.report import Check
from scheduler.arena import Dimensions
from scheduler.executor.runner import ModelUnusable

PART = "device"
LARGEST = 1024
# A row of it is 200 kB, and a batch takes long: this is enough to see where it saturates.
LARGEST_OF = {"lstm_c": 256}
FEEDERS = 4
SECONDS, SETTLE_S = 0.25, 0.05
# Loading, capturing and warming up of one crew, at most.
CREW_S = 30.0
ONE_WINDOW_P99_US = 150.0
LSTM_A_WINDOWS_PER_S = 1.7e6


@dataclass(frozen=True)
class Series:
    """What one crew is measured for."""

    model: str
    precision: str
    graphs: bool
    streams: tuple[int, ...]
    sizes: tuple[int, ...]
    spin: bool = False


def all_series(models: Sequence[str], *, quick: bool) -> Iterator[Series]:
    """The most important ones first: the time may not suffice for all."""
    few, all_of_them = (1, 4), (1, 2, 4)
    sizes = (1, 32, LARGEST) if quick else sizes_up_to(LARGEST)
    small = [model for model in models if model not in LARGEST_OF]
    for precision in ("fp16", "fp32"):
        for model in small:
            yield Series(model, precision, True, few if quick else all_of_them, sizes)
            if model == BUNDLED:
                yield Series(model, precision, True, (1,), (1, 8), spin=True)
    for model in set(models) & set(LARGEST_OF):
        for precision in ("fp16", "fp32"):
            yield Series(model, precision, True, (1,), (1, 16, LARGEST_OF[model]))
    if quick:
        return
    for precision, graphs, streams in (
        ("fp16", False, all_of_them),
        ("fp32", False, all_of_them),
        ("tf32", True, few),
        ("bf16", True, few),
    ):
        for model in small:
            yield Series(model, precision, graphs, streams, sizes)


def measure(results: Results, target: Target, models: Sequence[str], budget: Budget, *, quick: bool) -> int:
    """Prints its tables and checks; 1 where a bar does not hold."""
    rigs: dict[str, Rig] = {}
    with ExitStack() as stack:
        for series in all_series(models, quick=quick):
            if not budget.allows(CREW_S):
                results.note(PART, f"not measured for want of time: {series}")
                continue
            if series.model not in rigs:
                largest = LARGEST_OF.get(series.model, LARGEST)
                rigs[series.model] = stack.enter_context(rig_for(model_file(series.model), FEEDERS, largest))
            try:
                _series(results, target, rigs[series.model], series, budget)
            except ModelUnusable as error:
                results.note(PART, f"{series}: {error}")
            target.let_go()
    results.show(PART)
    return results.check(PART, *bars(results.rows(PART)))


def rig_for(file: ModelFile, feeders: int, largest: int, streams: int = 4) -> Rig:
    """With room for twice as many batches as there are streams."""
    per_feeder = -(-2 * streams // feeders) * largest
    signature = file.signature
    return Rig(Dimensions(feeders, 1, per_feeder, signature.input_row_bytes, signature.output_row_bytes))


def _series(results: Results, target: Target, rig: Rig, series: Series, budget: Budget) -> None:
    file = model_file(series.model)
    notes = Notebook()
    wanted = Wanted(
        [file],
        series.precision,
        series.sizes[-1],
        max(series.streams),
        graphs=series.graphs,
        spin=series.spin,
    )
    with frozen_garbage(), Crew(rig, target.hire(wanted, notes, [])) as crew:
        fits = crew.warm_up(series.sizes)
        for warning in notes.warnings:
            results.note(PART, f"{series.model} {series.precision}: {warning}")
        for streams in series.streams:
            for size in fits:
                if not budget.allows(1.0):
                    results.note(PART, f"cut off for want of time: {series}, {streams} streams, batch {size}")
                    return
                timing = crew.measure(size, streams, SECONDS, SETTLE_S)
                results.add(
                    PART,
                    {
                        "model": series.model,
                        "shape": file.description,
                        "parameters": parameters(file),
                        "precision": series.precision,
                        "mode": "graph" if series.graphs else "eager",
                        "wait": "spin" if series.spin else "block",
                        "streams": streams,
                        "batch": size,
                        "p50_us": timing.p50_us,
                        "p99_us": timing.p99_us,
                        "max_us": timing.max_us,
                        "windows_per_s": timing.rows_per_s,
                        "batches": timing.batches,
                        "program": notes.programs.get(size, ""),
                    },
                )


def bars(rows: Sequence[Row]) -> list[Check]:
    """Of what was measured: one window of the bundled model, in whichever way is fastest; and shape A."""
    checks = []
    alone = [row for row in rows if (row["model"], row["streams"], row["batch"]) == (BUNDLED, 1, 1)]
    if (row := best(alone, "p99_us", smallest=True)) is not None:
        how = f"{row['precision']}, {row['mode']}, {row['wait']}"
        name = f"one window of {BUNDLED}, dispatch to completion, p99 ({how})"
        checks.append(Check(name, row["p99_us"], ONE_WINDOW_P99_US, "us"))
    lstm_a = [row for row in rows if (row["model"], row["precision"]) == ("lstm_a", "fp16")]
    if (row := best(lstm_a, "windows_per_s", smallest=False)) is not None:
        name = f"lstm_a in FP16 (batch {row['batch']}, {row['streams']} streams, {row['mode']})"
        checks.append(Check(name, row["windows_per_s"], LSTM_A_WINDOWS_PER_S, "windows/s", at_most=False))
    return checks
