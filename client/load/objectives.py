"""What a load must keep, and whether it did. Names and units are those of the server's `[slo]` settings."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.load.figures import FlowFigures

# Of the server's table, but no objective of a load: it is what the load should offer.
_OTHERS = ("target_rps",)
_QUANTILES = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "p999_ms": "p999", "max_ms": "max"}
NAMES = (*_QUANTILES, "min_rps", "max_error_ratio")

# The promises of a trading platform: see `validate`.
DEFAULTS: Mapping[str, float] = {
    "p50_ms": 50.0,
    "p95_ms": 80.0,
    "p99_ms": 100.0,
    "max_ms": 200.0,
    "max_error_ratio": 0.01,
}


class BadObjectives(ValueError):
    """They cannot be read, or are none; says what is allowed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`figure` is None where nothing was measured, which keeps no promise."""

    name: str
    figure: float | None
    bound: float
    at_most: bool = True
    unit: str = "ms"

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        if self.figure is None:
            return False
        return self.figure <= self.bound if self.at_most else self.figure >= self.bound

    @property
    def text(self) -> str:
        """For people, with how far it is missed."""
        if self.figure is None:
            return "no figure"
        if self.holds:
            return "holds"
        by = abs(self.figure - self.bound)
        part = f", {by / self.bound:.0%}" if self.bound else ""
        return f"missed by {f'{by:.4g} {self.unit}'.strip()}{part}"


def parse(texts: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER` each. Raises `BadObjectives`."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals:
            raise BadObjectives(f"{text!r} is no objective, allowed is NAME=NUMBER")
        found[_known(name, text)] = _positive(name, number)
    return found


def read(path: Path) -> dict[str, float]:
    """The table `[slo]` of a TOML file, such as the server's. Raises `BadObjectives`."""
    try:
        table = tomllib.loads(path.read_text()).get("slo")
    except (OSError, ValueError) as error:
        raise BadObjectives(f"cannot read {path}: {error}") from None
    if not isinstance(table, dict):
        raise BadObjectives(f"{path} has no table [slo]")
    return {
        _known(name, f"{path}: {name}"): _positive(name, str(number))
        for name, number in table.items()
        if name not in _OTHERS
    }


def judge(objectives: Mapping[str, float], flow: FlowFigures) -> list[Verdict]:
    """One verdict for each objective."""
    verdicts = []
    for name, bound in objectives.items():
        if name == "min_rps":
            verdicts.append(Verdict(f"{flow.name}: {name}", flow.per_s, bound, at_most=False, unit="/s"))
        elif name == "max_error_ratio":
            verdicts.append(Verdict(f"{flow.name}: {name}", flow.error_ratio, bound, unit=""))
        else:
            verdicts.append(Verdict(f"{flow.name}: {name}", flow.latency_ms[_QUANTILES[name]], bound))
    return verdicts


def _known(name: str, text: str) -> str:
    if name not in NAMES:
        raise BadObjectives(f"{text!r}: unknown objective, allowed are {', '.join(NAMES)}")
    return name


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise BadObjectives(f"{name}: {text!r} is no number of at least 0")
    return number
