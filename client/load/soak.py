"""What a server needs while a load is held: memory by process, and how much of the machine is used."""

import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from client.load.figures import RunFigures
from client.load.flows import Flow
from client.load.objectives import Verdict, judge
from client.load.report import Report, Table, main_flow
from client.load.scenarios import memory_verdicts
from client.load.session import Session

# What a server has early on is that of its start: caches fill, pools grow.
SETTLED_PART = 0.1
EVERY_S = 1.0
TIMEOUT_S = 5.0
# Of the machine, the critical levels of a trading platform.
CRITICAL = {
    "tickring_cpu_utilization_ratio": ("CPU", 0.95),
    "tickring_memory_utilization_ratio": ("memory", 0.98),
    "tickring_gpu_utilization_ratio": ("GPU", 0.95),
}

_RESIDENT = re.compile(r'^tickring_process_resident_bytes\{process="([^"]+)"\} (\S+)$', re.MULTILINE)
_RESTARTS = re.compile(r"^tickring_process_restarts_total\{.*\} (\S+)$", re.MULTILINE)
_RATIO = re.compile(r"^(tickring_(?:cpu|memory|gpu)_utilization_ratio)(?:\{.*\})? (\S+)$", re.MULTILINE)


def soak(
    session: Session, flows: Sequence[Flow], seconds: float, slo: Mapping[str, float], metrics: str | None
) -> None:
    """Holds a load. With `metrics`: memory must not have grown since the load had settled, and nothing died.

    Raises:
        OSError: the metrics cannot be read.
    """
    report = session.report
    early: list[str] = []

    def at_elapsed(elapsed_s: float) -> None:
        if metrics is not None and not early and elapsed_s >= SETTLED_PART * seconds:
            early.append(fetch(metrics))

    if metrics is not None:
        fetch(metrics)  # better now than at the end of an hour
    run: RunFigures = session.run_at(session.server, "soak", flows, seconds, at_elapsed)
    report.runs.append(run)
    report.verdicts += judge(slo, main_flow(run))
    if metrics is None or not early:
        return
    late = fetch(metrics)
    before, after = resident_bytes(early[0]), resident_bytes(late)
    report.tables.append(
        Table(
            "Resident memory, MB",
            ["process", f"after {SETTLED_PART:.0%} of the time", "at the end"],
            [
                [name, f"{before[name] / 1e6:,.1f}", f"{after.get(name, 0.0) / 1e6:,.1f}"]
                for name in sorted(before)
            ],
        )
    )
    report.verdicts += memory_verdicts(before, after)
    report.verdicts.append(Verdict("processes that died", restarts(late) - restarts(early[0]), 0, unit=""))


@contextmanager
def watch_resources(metrics: str | None, report: Report) -> Iterator[None]:
    """Looks every second while a load runs; the means are promises in the report. Raises `OSError`."""
    if metrics is None:
        yield
        return
    seen: dict[str, list[float]] = {}
    ended = threading.Event()
    fetch(metrics)

    def look() -> None:
        while not ended.wait(EVERY_S):
            try:
                text = fetch(metrics)
            except OSError:
                continue  # one look less
            for name, value in _RATIO.findall(text):
                seen.setdefault(name, []).append(float(value))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
    for name, values in sorted(seen.items()):
        label, critical = CRITICAL[name]
        report.verdicts.append(
            Verdict(f"machine: {label} used, mean", sum(values) / len(values), critical, unit="")
        )


def fetch(url: str) -> str:
    """The text of `/metrics`. Raises `OSError`."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def resident_bytes(text: str) -> dict[str, float]:
    """Of each process."""
    return {name: float(value) for name, value in _RESIDENT.findall(text) if float(value)}


def restarts(text: str) -> float:
    """Of all processes."""
    return sum(float(value) for value in _RESTARTS.findall(text))
