"""What the engine adds to the model; batch 32."""

from bench.conftest import Gate
from bench.engine_path import overhead_us

ROUNDS = 3


def test_engine_overhead_per_item(gate: Gate) -> None:
    """Everything the engine does for an item at batch 32, but the model."""
    gate.check("engine_overhead", *(overhead_us() for _ in range(ROUNDS)))
