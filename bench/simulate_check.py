"""The simulator against a real server: the same arrivals, the same batch times, are the waits the same?

A server of this machine serves a model of about 5 ms a batch. A load process sends Poisson arrivals of two
classes, so that the engine is about 70 % busy. What the server did is read from its slots: when each item
was queued, how long each batch computed, and how long the engine then needed to take the next. The
simulator gets these instants, and for each of its batches the time of the real one nearest in time (the
machine is not equally fast all the time); it decides everything else itself: what goes when, with whom,
in which bucket. Compared are the queue waits, which follow from those decisions.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import simulate_model
from bench.arrivals import Trace
from bench.costs import Device, Recording, Replayed
from bench.scenario import Scenario, Stream
from bench.server_process import ServerProcess
from bench.simulate_load import TIMEOUT_S, Answer, saturate, send
from bench.simulate_record import BatchLog, Record, reconstruct
from bench.simulation import simulate
from bench.simulation_report import summarise

TOLERANCE = 0.15
# Of what the server does when it is never idle, in full batches. Smaller ones cost more per item: at this
# load the engine is about 70 % busy.
LOAD = 0.5
SECONDS = 30.0
SATURATE_S = 3.0
BATCH_MS = 5.0
BUCKETS = (1, 2, 4)
# Share of the load by class; the first is the one that never waits for company.
CLASSES = {"real_time_trading": 0.4, "batch_processing": 0.6}
# One instance. The target size is fixed: an adaptive one depends on what the server learned before, too.
SETTINGS: dict[str, dict[str, Any]] = {
    "server": {"frontends": 1, "max_in_flight_per_stream": 4096},
    "scheduler": {
        "max_batch_size": BUCKETS[-1],
        "adaptive": False,
        "bulk_quantum_ms": 20.0,
        "slots_per_frontend": 2048,
    },
    "executor": {"device": "cpu", "instances": 1, "cpu_threads": 1},
}


@dataclass(frozen=True)
class Comparison:
    """A quantile of the queue waits of one class: what the server measured, what the simulator says."""

    priority: str
    quantile: str
    server_ms: float
    simulator_ms: float

    @property
    def ratio(self) -> float:
        """Simulator over server."""
        return self.simulator_ms / self.server_ms

    @property
    def holds(self) -> bool:
        """Within TOLERANCE."""
        return abs(self.ratio - 1) <= TOLERANCE


def main(console: Console, rounds: int, report: Path | None) -> int:
    """Prints a table per round; exit code 1 unless all of them hold."""
    document = []
    held = 0
    with tempfile.TemporaryDirectory(prefix="tickring-check-") as folder:
        simulate_model.build(Path(folder) / "models", BUCKETS, BATCH_MS)
        with ServerProcess(_environment(), ("--models", f"{folder}/models")) as server:
            for number in range(rounds):
                record = observe(server, seed=number)
                rows = compare(record, Path(folder))
                holds = all(row.holds for row in rows)
                held += holds
                console.print(_table(number, record, rows))
                document.append(
                    {"facts": facts(record), "rows": [asdict(row) for row in rows], "holds": holds}
                )
    console.print(f"{held} of {rounds} rounds within {TOLERANCE:.0%}")
    if report:
        report.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if held == rounds else 1


def observe(server: ServerProcess, seed: int) -> Record:
    """Offers the load and records what the server made of it. Raises ValueError: too much was not seen."""
    log = BatchLog(server)
    sends = _sends(_items_per_s(saturate(server.target, SATURATE_S)), seed)
    log.start()
    try:
        answers = send(server.target, sends)
    finally:
        seen = log.stop()
    return reconstruct(answers, seen, urgent=next(iter(CLASSES)))


def compare(record: Record, folder: Path) -> list[Comparison]:
    """Runs the simulator on what was recorded."""
    scenario = _scenario(record, folder)
    seconds = (record.items[-1].queued_ns - record.items[0].queued_ns) / 1e9 + 1
    summary = summarise(simulate(scenario, replicas=1, seconds=seconds, seed=0), scenario.classes)
    simulated = {part.name: part for part in summary.classes}
    rows = []
    for label in CLASSES:
        waits_ms = [item.wait_ns / 1e6 for item in record.items if item.priority == label]
        part = simulated[label]
        assert part.offered == len(waits_ms)
        for name, q, simulated_ms in (("p50", 0.5, part.wait_p50_ms), ("p99", 0.99, part.wait_p99_ms)):
            assert simulated_ms is not None
            rows.append(Comparison(label, name, float(np.quantile(waits_ms, q)), simulated_ms))
    return rows


def facts(record: Record) -> dict[str, float]:
    """What the waits hang on; they also tell how quiet the machine was."""
    full_ms = [batch.compute_ns / 1e6 for batch in record.batches if batch.bucket == BUCKETS[-1]]
    gaps_ms = [batch.gap_ns / 1e6 for batch in record.batches if batch.gap_ns is not None]
    busy_ns = sum(batch.compute_ns + (batch.gap_ns or 0) for batch in record.batches)
    last = record.batches[-1]
    span_ns = last.at_ns + last.compute_ns - record.batches[0].at_ns
    return {
        "items": len(record.items),
        "batches": len(record.batches),
        "found": record.found,
        "load": busy_ns / span_ns,
        "full_batch_p50_ms": statistics.median(full_ms),
        "full_batch_p99_ms": float(np.quantile(full_ms, 0.99)),
        "gap_p50_ms": statistics.median(gaps_ms),
        "gap_p99_ms": float(np.quantile(gaps_ms, 0.99)),
        "wake_p50_ms": statistics.median([ns for _, ns in record.wakes] or [0]) / 1e6,
    }


def _scenario(record: Record, folder: Path) -> Scenario:
    trace = folder / "arrivals.csv"
    first_ns = record.items[0].queued_ns
    trace.write_text(
        "".join(f"{(item.queued_ns - first_ns) / 1e9:.9f},{item.priority}\n" for item in record.items)
    )
    recording = Recording(
        batches=tuple(
            (
                (batch.at_ns - first_ns) / 1e9,
                batch.bucket,
                batch.compute_ns / 1000,
                None if batch.gap_ns is None else batch.gap_ns / 1000,
            )
            for batch in record.batches
        ),
        wakes=tuple(((at_ns - first_ns) / 1e9, ns / 1000) for at_ns, ns in record.wakes),
    )
    times = folder / "batches.json"
    times.write_text(recording.model_dump_json())
    return Scenario(
        description="what the server was offered",
        settings=SETTINGS,
        device=Device(cost=Replayed(model="replayed", file=times), gap_us=facts(record)["gap_p50_ms"] * 1000),
        streams=tuple(
            Stream(
                priority=label,
                arrivals=Trace(process="trace", file=trace, only_class=label),
                timeout_ms=TIMEOUT_S * 1000,
            )
            for label in CLASSES
        ),
    )


def _items_per_s(answers: Sequence[Answer]) -> float:
    """Of a load that never let the server rest; its first tenth counts as warm-up."""
    ends_s = sorted(answer.answered_ns / 1e9 for answer in answers)[len(answers) // 10 :]
    return (len(ends_s) - 1) / (ends_s[-1] - ends_s[0])


def _sends(items_per_s: float, seed: int) -> list[tuple[float, str]]:
    """Poisson arrivals of both classes, merged."""
    rng = np.random.default_rng(seed)
    sends = [
        (float(at_s), label)
        for label, share in CLASSES.items()
        for at_s in rng.random(rng.poisson(items_per_s * LOAD * share * SECONDS)) * SECONDS
    ]
    return sorted(sends)


def _table(number: int, record: Record, rows: Sequence[Comparison]) -> Table:
    grid = Table(
        title=f"round {number}",
        caption=", ".join(f"{name} {figure:.4g}" for name, figure in facts(record).items()),
        title_justify="left",
        caption_justify="left",
        min_width=120,
    )
    grid.add_column("class")
    for name in ("wait", "server, ms", "simulator, ms", "ratio", ""):
        grid.add_column(name, justify="right")
    for row in rows:
        verdict = "" if row.holds else "OUTSIDE"
        ms = (f"{row.server_ms:.3f}", f"{row.simulator_ms:.3f}")
        grid.add_row(row.priority, row.quantile, *ms, f"{row.ratio:.3f}", verdict)
    return grid


def _environment() -> dict[str, str]:
    return {
        f"TICKRING_{table}__{name}".upper(): str(value)
        for table, settings in SETTINGS.items()
        for name, value in settings.items()
    }
