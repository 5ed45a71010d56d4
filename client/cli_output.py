"""How the command shows things: for people with rich, for programs as JSON."""

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from client.errors import PredictionError
from client.model_info import ModelInfo, TensorInfo
from client.prediction import Prediction

# Values of one output shown to people; --json shows all.
SHOWN_VALUES = 8


def print_json(value: object) -> None:
    """One line on standard output."""
    print(json.dumps(value, allow_nan=False), flush=True)


def prediction_json(prediction: Prediction, round_trip_s: float) -> dict[str, Any]:
    """Outputs as nested lists, numbers that JSON lacks as "NaN", "Infinity" and "-Infinity"."""
    timing = prediction.timing
    return {
        "request_id": prediction.request_id,
        "model_name": prediction.model_name,
        "model_version": prediction.model_version,
        "outputs": {name: _plain(array.tolist()) for name, array in prediction.outputs.items()},
        "timing": {name: getattr(timing, name) for name in timing.__slots__},
        "round_trip_ns": round(round_trip_s * 1e9),
    }


def error_json(error: PredictionError) -> dict[str, Any]:
    """Everything an error says."""
    return {
        "code": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
    }


def print_prediction(prediction: Prediction, round_trip_s: float) -> None:
    """A table of outputs and a line of times."""
    table = Table("output", "dtype", "shape", "values")
    for name, array in prediction.outputs.items():
        table.add_row(name, str(array.dtype), _shape_text(array.shape), _values_text(array))
    out = console()
    out.print(table)
    timing = prediction.timing
    batch = "from the cache" if timing.cache_hit else f"batch {timing.batch_size} of {timing.batch_bucket}"
    out.print(
        f"{prediction.model_name} version {prediction.model_version}, {batch}:"
        f" queue wait {timing.queue_wait_ns / 1e6:.3f} ms, compute {timing.compute_ns / 1e6:.3f} ms,"
        f" server {timing.server_ns / 1e6:.3f} ms, round trip {round_trip_s * 1e3:.3f} ms",
        soft_wrap=True,
    )


class StreamReport:
    """Prints each row as it ends and keeps what the summary needs."""

    def __init__(self, as_json: bool) -> None:
        self.failures = 0
        self.first_failure = ""
        self._as_json = as_json
        self._started = time.perf_counter()
        self._round_trips_s: list[float] = []

    def answered(self, row: int, prediction: Prediction, round_trip_s: float) -> None:
        """One row came back."""
        self._round_trips_s.append(round_trip_s)
        if self._as_json:
            print_json({"row": row} | prediction_json(prediction, round_trip_s))
            return
        values = "  ".join(f"{name} {_values_text(array)}" for name, array in prediction.outputs.items())
        print(f"row {row}  {round_trip_s * 1e3:.3f} ms  {values}", flush=True)

    def failed(self, row: int, error: PredictionError) -> None:
        """One row ended without its result."""
        self.failures += 1
        self.first_failure = self.first_failure or f"row {row}: {error}"
        if self._as_json:
            print_json({"row": row, "error": error_json(error)})
        else:
            print(f"row {row}  failed  {one_line(str(error))}", flush=True)

    def summary(self) -> str:
        """Counts, and the round trips of the rows that were answered; quantiles are of the raw samples."""
        wall_s = time.perf_counter() - self._started
        answered = len(self._round_trips_s)
        text = f"{answered} rows answered, {self.failures} failed in {wall_s:.2f} s"
        if not answered:
            return text
        quantiles_s = np.quantile(self._round_trips_s, [0.5, 0.99, 1.0], method="inverted_cdf")
        p50, p99, longest = quantiles_s * 1e3
        rate = f"{(answered + self.failures) / wall_s:.0f}/s"
        return f"{text} ({rate}); round trip p50 {p50:.3f} ms, p99 {p99:.3f} ms, max {longest:.3f} ms"


def model_json(model: ModelInfo) -> dict[str, Any]:
    """Everything the server says about a model."""
    return {
        "name": model.name,
        "description": model.description,
        "format": model.format,
        "is_default": model.is_default,
        "max_rows": model.max_rows,
        "versions": [
            {"version": version.version, "state": version.state, "sha256": version.sha256}
            for version in model.versions
        ],
        "inputs": [_spec_json(spec) for spec in model.inputs],
        "outputs": [_spec_json(spec) for spec in model.outputs],
    }


def print_models(models: Sequence[ModelInfo]) -> None:
    """A table, one line per tensor; narrow enough for 80 columns."""
    table = Table("model", "", "tensor", "dtype", "shape", show_lines=True)
    for model in models:
        facts = [model.name, "(default)"] if model.is_default else [model.name]
        facts += [f"version {version.version} {version.state}" for version in model.versions]
        tensors = [("in", spec) for spec in model.inputs] + [("out", spec) for spec in model.outputs]
        table.add_row(
            "\n".join([*facts, f"up to {model.max_rows} rows"]),
            "\n".join(way for way, _ in tensors),
            "\n".join(spec.name for _, spec in tensors),
            "\n".join(spec.dtype.name for _, spec in tensors),
            "\n".join(_shape_text(("n", *spec.allowed_sizes)) for _, spec in tensors),
        )
    console().print(table)


def console() -> Console:
    """Standard output, for text of the server's: brackets and colons in it are not rich's."""
    return Console(highlight=False, markup=False, emoji=False)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _spec_json(spec: TensorInfo) -> dict[str, Any]:
    told: dict[str, Any] = {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}
    if spec.max_shape:
        told["max_shape"] = list(spec.max_shape)
    if spec.min_shape:
        told["min_shape"] = list(spec.min_shape)
    return told


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _values_text(array: npt.NDArray[np.generic]) -> str:
    shown = " ".join(f"{value:.4g}" for value in array.ravel()[:SHOWN_VALUES].tolist())
    return f"{shown} …" if array.size > SHOWN_VALUES else shown


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())
