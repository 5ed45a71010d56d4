"""The table that `make bench` ends with: measured, floor, ratio, bar, verdict."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.bare_model import BareModel, measure
from bench.server_process import ServerProcess


@dataclass(frozen=True)
class Verdict:
    """One gate. `ratio` is measured over floor, both from this run; `unit` is of both."""

    name: str
    measured: float
    floor: float
    unit: str
    bar: float
    higher_is_better: bool

    @property
    def ratio(self) -> float:
        return self.measured / self.floor

    @property
    def holds(self) -> bool:
        return self.ratio >= self.bar if self.higher_is_better else self.ratio <= self.bar

    def row(self) -> str:
        sign = "≥" if self.higher_is_better else "≤"
        word = "ok" if self.holds else "TOO SLOW"
        return (
            f"{self.name:<46} {self.measured:>10.2f} {self.floor:>10.2f} {self.unit:<10} "
            f"{self.ratio:>6.2f} {sign} {self.bar:<6.2f} {word}"
        )


class Gate:
    """Collects verdicts and fails the test whose bar does not hold."""

    verdicts: tuple[Verdict, ...] = ()

    def check(self, verdict: Verdict) -> None:
        Gate.verdicts += (verdict,)
        assert verdict.holds, verdict.row()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as process:
        yield process


@pytest.fixture
def bare_model() -> BareModel:
    """Measured anew for every gate that uses it: the machine is not the same from minute to minute."""
    return measure()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not Gate.verdicts:
        return
    terminalreporter.section("gates: measured against a floor of the same run")
    terminalreporter.write_line(
        f"{'gate':<46} {'measured':>10} {'floor':>10} {'unit':<10} {'ratio':>6}   bar    verdict"
    )
    for verdict in Gate.verdicts:
        terminalreporter.write_line(verdict.row())
