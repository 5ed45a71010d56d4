"""The table that `make bench` ends with: measured, floor, ratio, bar, verdict."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.server_process import ServerProcess

BUDGETS = Path(__file__).with_name("budgets.toml")


@dataclass(frozen=True)
class Budget:
    """What a part may cost beside its floor, from `budgets.toml`, which says why."""

    title: str
    unit: str
    bar: float
    why: str
    at_least: bool = False


def budgets() -> dict[str, Budget]:
    """By name. Raises TypeError for an entry that lacks something or has something else."""
    return {name: Budget(**entry) for name, entry in tomllib.loads(BUDGETS.read_text()).items()}


@dataclass(frozen=True)
class Verdict:
    """One gate. `ratio` is measured over floor, both from this run and in the budget's unit."""

    budget: Budget
    measured: float
    floor: float

    @property
    def ratio(self) -> float:
        return self.measured / self.floor

    @property
    def holds(self) -> bool:
        return self.ratio >= self.budget.bar if self.budget.at_least else self.ratio <= self.budget.bar

    def row(self) -> str:
        budget = self.budget
        sign = "≥" if budget.at_least else "≤"
        word = "ok" if self.holds else "TOO SLOW"
        return (
            f"{budget.title:<46} {self.measured:>10.2f} {self.floor:>10.2f} {budget.unit:<10} "
            f"{self.ratio:>6.2f} {sign} {budget.bar:<6.2f} {word}"
        )


class Gate:
    """Collects verdicts and fails the test whose bar does not hold."""

    verdicts: tuple[Verdict, ...] = ()
    budgets = budgets()

    def judge(self, name: str, *rounds: tuple[float, float]) -> Verdict:
        """The best figure beside the best floor of the rounds, each (measured, floor): a slower build is
        slower in all of them, a noisy neighbour disturbs some, of either.
        """
        budget = self.budgets[name]
        best = max if budget.at_least else min
        return Verdict(budget, *(best(figures) for figures in zip(*rounds, strict=True)))

    def check(self, name: str, *rounds: tuple[float, float]) -> None:
        """Judges, and fails the test where the budget does not hold."""
        best = self.judge(name, *rounds)
        Gate.verdicts += (best,)
        assert best.holds, best.row()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        yield process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not Gate.verdicts:
        return
    terminalreporter.section("gates: measured against a floor of the same run")
    terminalreporter.write_line(
        f"{'gate':<46} {'measured':>10} {'floor':>10} {'unit':<10} {'ratio':>6}   bar    verdict"
    )
    for verdict in Gate.verdicts:
        terminalreporter.write_line(verdict.row())
