"""The parity part: every model in every precision on the device, beside itself in FP32 on the CPU."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bench.gpu_models import BUNDLED, ModelFile, model_file
from bench.gpu_results import Budget, Results
from scheduler.executor.parity import TOLERANCES, measure
from scheduler.executor.runner import ModelUnusable

PART = "parity"
ROWS = 64
MODEL_S = 20.0


def compare(results: Results, device: str, models: Sequence[str], budget: Budget) -> int:
    """Prints its table; 1 where an output is further off than its precision allows."""
    outside = 0
    for name in models:
        file = model_file(name)
        reference = file.load("cpu", "fp32")
        for precision, allowed in TOLERANCES.items():
            if not budget.allows(MODEL_S):
                results.note(PART, f"not measured for want of time: {name} {precision}")
                continue
            try:
                model = file.load(device, precision)
            except ModelUnusable as error:
                results.note(PART, f"{name} {precision}: {error}")
                continue
            for what, windows in _inputs(file):
                for found in measure(model, reference, [windows], device):
                    inside = found.is_within(precision)
                    outside += not inside
                    results.add(
                        PART,
                        {
                            "model": name,
                            "precision": precision,
                            "windows": what,
                            "output": found.name,
                            "largest error": found.max_abs,
                            "over largest": found.worst,
                            "allowed": allowed.worst,
                            "rms": found.rms,
                            "rms allowed": allowed.rms,
                            "verdict": "holds" if inside else "BROKEN",
                        },
                    )
    results.show(PART)
    return int(outside > 0)


def _inputs(file: ModelFile) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    shape = file.signature.inputs[0].shape
    yield "random", np.random.default_rng(0).standard_normal((ROWS, *shape), dtype=np.float32)
    if file.name == BUNDLED and (real := real_windows()) is not None:
        yield "real", real


def real_windows() -> npt.NDArray[np.float32] | None:
    """The newest of the S&P 500's; None where the packages of the extra `demo` are missing."""
    try:
        from examples.sp500.features import load_history, make_windows
    except ImportError:
        return None
    return np.ascontiguousarray(make_windows(load_history()).windows[-ROWS:])
