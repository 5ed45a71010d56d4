"""What the scenarios print: tables, checks with figure, bound and verdict, and where plots go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Ignored by git, like all that is built.
PLOTS = Path("build") / "bench"


@dataclass(frozen=True)
class Check:
    """A figure and the bound that it must keep."""

    name: str
    figure: float
    bound: float
    unit: str
    at_most: bool = True

    @property
    def holds(self) -> bool:
        """False also where there is no figure (NaN)."""
        return self.figure <= self.bound if self.at_most else self.figure >= self.bound

    def row(self) -> list[str]:
        """Of the table of checks."""
        sign = "≤" if self.at_most else "≥"
        return [
            self.name,
            f"{self.figure:.2f} {self.unit}",
            f"{sign} {self.bound:.2f} {self.unit}",
            "holds" if self.holds else "BROKEN",
        ]


def print_checks(checks: Sequence[Check]) -> int:
    """Prints them as a table; the exit code: 1 when one does not hold."""
    print_table(["check", "figure", "bound", "verdict"], [check.row() for check in checks])
    return 0 if all(check.holds for check in checks) else 1


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """In Markdown, its columns aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def quantile(samples: Sequence[float], part: float) -> float:
    """From raw samples; NaN where there are none."""
    return float(np.quantile(samples, part)) if len(samples) else float("nan")


def ms(value: float) -> str:
    """Milliseconds with as many digits as matter; a dash where there is none."""
    if np.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
