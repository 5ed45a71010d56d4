"""budgets.toml says what each gate may cost, and why; nothing in it is for nobody."""

from pathlib import Path

from bench.conftest import budgets


def test_every_budget_has_its_gate_and_its_reason() -> None:
    gates = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name, budget in budgets().items():
        assert f'"{name}"' in gates or f'"{name.rpartition("_")[0]}_{{mode}}"' in gates, name
        assert budget.why.endswith("."), name
        assert budget.bar > 0, name
