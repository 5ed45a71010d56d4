"""The sections of docs/benchmarks.md that commands write."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Section:
    """What stands between the marks of this name."""

    name: str

    def put(self, text: str) -> None:
        """Writes it anew."""
        before, _, after = self._parts()
        PAGE.write_text(f"{before}{self._mark('begin')}{text}{self._mark('end')}{after}")

    def shown(self) -> str:
        """As it stands there."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, str, str]:
        before, _, rest = PAGE.read_text().partition(self._mark("begin"))
        text, _, after = rest.partition(self._mark("end"))
        return before, text, after

    def _mark(self, which: str) -> str:
        return f"<!-- {self.name}: {which} -->\n"


def line(*cells: str) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the smallest and the largest."""
    middle, low, high = (f"{each:{form}}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"
