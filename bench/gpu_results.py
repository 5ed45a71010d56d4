"""What a benchmark of a GPU keeps: where it ran, its rows, its bars. Written after every row."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.report import Check, print_checks, print_table

Row = Mapping[str, Any]
NOT_MEASURED = "not measured"
# Said in every file: these figures are easily taken for something else.
WHAT = (
    "Whole windows, computed anew for every inference, by this project's own path on the machine named here. "
    "The LSTM shapes have random weights. Not audited, and no result of anybody's benchmark."
)


class Results:
    """One run: facts about the machine, and by part its rows, notes and checks."""

    def __init__(self, out: Path | None, facts: Mapping[str, Any]) -> None:
        self._out = out
        self._parts: dict[str, dict[str, Any]] = {}
        self._facts = dict(facts)
        self._write()

    def add(self, part: str, row: Row) -> None:
        """One row of a part."""
        self._part(part)["rows"].append(dict(row))
        self._write()

    def note(self, part: str, text: str) -> None:
        """What cannot be read off the rows, such as why there are none; printed at once."""
        print(f"{part}: {text}", flush=True)
        self._part(part)["notes"].append(text)
        self._write()

    def check(self, part: str, *checks: Check) -> int:
        """Bars with their verdicts, printed as a table; 1 when one of them does not hold."""
        self._part(part)["checks"] += [asdict(check) | {"holds": check.holds} for check in checks]
        self._write()
        return print_checks(checks)

    def rows(self, part: str) -> list[Row]:
        """Those of a part, so far."""
        return list(self._part(part)["rows"])

    def show(self, part: str) -> None:
        """Prints the rows of a part."""
        rows = self.rows(part)
        if not rows:
            print(f"{part}: {NOT_MEASURED}\n", flush=True)
            return
        header = list(dict.fromkeys(name for row in rows for name in row))
        print_table(header, [[shown(row.get(name)) for name in header] for row in rows])

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"what": WHAT, "run": self._facts, "parts": self._parts}

    def _part(self, part: str) -> dict[str, Any]:
        return self._parts.setdefault(part, {"rows": [], "notes": [], "checks": []})

    def _write(self) -> None:
        if self._out is None:
            return
        # Whole or not at all: a run that is cut off leaves what it had.
        draft = self._out.with_suffix(".part")
        draft.write_text(json.dumps(_finite(self.as_json()), indent=1) + "\n")
        os.replace(draft, self._out)


class Budget:
    """Until when a part may start something new."""

    def __init__(self, minutes: float) -> None:
        self._ends_s = time.monotonic() + 60 * minutes

    def left_s(self) -> float:
        """Seconds; 0 once it is spent."""
        return max(0.0, self._ends_s - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long may still begin."""
        return self.left_s() >= seconds


def shown(value: object) -> str:
    """As a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if value != value:
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def facts(device: str) -> dict[str, Any]:
    """Device, driver, versions, commit, instant and command of this run."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench.gpu", *sys.argv[1:]]),
        "commit": commit(),
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
    }


def commit() -> str:
    """Of the checkout, with a mark if it differs from it; "unknown" outside of one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).resolve().parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def driver() -> str:
    """The NVIDIA driver's version, or "unknown"."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # not installed, or no driver: the rest of the run is worth having
        return "unknown"


def best(rows: Sequence[Row], figure: str, *, smallest: bool) -> Row | None:
    """The row with the smallest or largest figure; None where no row has one."""
    having = [row for row in rows if isinstance(row.get(figure), int | float) and row[figure] == row[figure]]
    return min(having, key=lambda row: row[figure] if smallest else -row[figure], default=None)


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
