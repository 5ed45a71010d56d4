"""The bundled model on each of a CPU's backends, and with its precision left open."""

import grpc
import grpc.aio
import numpy as np
import pytest
import torch

from server.repository import load_repository
from server.settings import bundled_repository
from tests.e2e.calls import array, unary, window_request, windows
from tests.e2e.conftest import Launch
from tests.e2e.service import BUNDLED, Line

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

ROWS = (1, 3, 32)


@pytest.fixture(scope="module")
def expected() -> dict[int, list[np.ndarray]]:
    """What the model answers without a server, by the number of rows."""
    (manifest,) = load_repository(bundled_repository()).manifests
    module = torch.jit.load(manifest.latest.path).eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        return {rows: [each.numpy() for each in module(torch.from_numpy(windows(rows)))] for rows in ROWS}


async def answered(launch: Launch, **executor: str) -> tuple[dict[int, list[np.ndarray]], Line, list[Line]]:
    """The answers of a server with these settings, and what it says of the model: loaded, and its forms."""
    settings = {f"TICKRING_EXECUTOR__{name.upper()}": value for name, value in executor.items()}
    service = launch(settings=BUNDLED | settings).ready()
    found = {}
    async with grpc.aio.insecure_channel(service.target) as channel:
        for rows in ROWS:
            response = (await unary(channel, window_request(rows))).response
            found[rows] = [array(output) for output in response.outputs]
    loaded = service.wait_for("model is loaded")
    forms = [line for line in service.logged() if line["event"] == "form of a model is chosen"]
    service.stop()
    return found, loaded, forms


def largest_error(found: dict[int, list[np.ndarray]], expected: dict[int, list[np.ndarray]]) -> float:
    """Over the largest magnitude of each output."""
    return max(
        float(np.abs(got - wanted).max() / np.abs(wanted).max())
        for rows in ROWS
        for got, wanted in zip(found[rows], expected[rows], strict=True)
    )


async def test_onnx_runtime_answers_as_torch_does(
    launch: Launch, expected: dict[int, list[np.ndarray]]
) -> None:
    """It does compute: some bits are others."""
    found, loaded, (forms,) = await answered(launch, cpu_backend="onnx")
    assert loaded["variant"] == "onnx"
    assert (forms["forms"], forms["refused"]) == ("onnx from 1 to 64", {})
    assert 0 < largest_error(found, expected) < 1e-5


async def test_torch_can_be_kept(launch: Launch, expected: dict[int, list[np.ndarray]]) -> None:
    """Nothing else is tried then."""
    found, loaded, forms = await answered(launch, cpu_backend="torch")
    assert (loaded["variant"], loaded["precision"], forms) == ("packed", "fp32", [])
    assert largest_error(found, expected) < 1e-5


async def test_an_open_precision_answers_within_its_tolerance(
    launch: Launch, expected: dict[int, list[np.ndarray]]
) -> None:
    """Whichever form each batch is run in; all of them have been measured for one row."""
    found, loaded, (forms,) = await answered(launch, precision="auto", cpu_backend="auto")
    assert loaded["precision"] == "auto"
    assert set(forms["ms_by_bucket"]["1"]) | set(forms["refused"]) == {"torch", "onnx", "torch bf16"}
    assert largest_error(found, expected) < 6e-2
