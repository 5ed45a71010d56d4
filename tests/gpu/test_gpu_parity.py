"""The bundled model on a GPU, in every precision and both formats, beside FP32 on the CPU."""

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from examples.sp500.features import load_history, make_windows
from examples.sp500.model import CnnLstm
from scheduler.executor.parity import TOLERANCES, measure
from scheduler.executor.runner import Array, DeviceModel, DeviceSettings, load_model
from server.repository import load_repository, read_verified
from server.settings import bundled_repository

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]

(MANIFEST,) = load_repository(bundled_repository()).manifests
SIGNATURE = MANIFEST.signature(MANIFEST.latest.version)
GPU = "cuda:0"
ROWS = 256


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The bundled model in both formats."""
    script = read_verified(MANIFEST.latest)
    model = CnnLstm().eval()
    model.load_state_dict(torch.jit.load(io.BytesIO(script)).state_dict())  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # that an LSTM keeps its weights in a list as well
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        exported = torch.export.export(model, (torch.zeros(2, 50, 60),), dynamic_shapes=({0: batch},))
        torch.export.save(exported, buffer)
    return {"torchscript": script, "exported_program": buffer.getvalue()}


@pytest.fixture(scope="module")
def reference(files: dict[str, bytes]) -> DeviceModel:
    """In FP32 on the CPU."""
    return load_model("torchscript", files["torchscript"], SIGNATURE, DeviceSettings())


@pytest.fixture(scope="module", params=["random", "real"])
def windows(request: pytest.FixtureRequest) -> Array:
    """Noise, and days of the S&P 500 from all of its history: float32 `[256, 50, 60]`."""
    if request.param == "random":
        noise: Array = np.random.default_rng(4).standard_normal((ROWS, 50, 60), np.float32)
        return noise
    every = make_windows(load_history()).windows
    return np.ascontiguousarray(every[np.linspace(0, len(every) - 1, ROWS).astype(int)])


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """A warning of torch's, such as that weights of an LSTM are not in one buffer, is a failure here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*contiguous chunk.*")
        yield


@pytest.mark.parametrize("model_format", ["torchscript", "exported_program"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_precision_is_within_its_tolerance(
    files: dict[str, bytes], reference: DeviceModel, windows: Array, model_format: str, precision: str
) -> None:
    """In every output, in batches large and small."""
    settings = DeviceSettings(device=GPU, precision=precision)
    model = load_model(model_format, files[model_format], SIGNATURE, settings)
    for rows in (1, 7, ROWS):
        found = measure(model, reference, [windows[:rows]], GPU)
        print(model_format, precision, rows, model.variant, *found, sep="\n  ")
        assert all(error.is_within(precision) for error in found), found
    narrow = precision != "fp32"
    assert any(error.rms > TOLERANCES["fp32"].rms for error in found) is narrow, (
        "computed in another precision"
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_gpu_answers_in_the_types_of_the_manifest(
    files: dict[str, bytes], windows: Array, precision: str
) -> None:
    """On the device, contiguous, without gradients, on the stream of the caller."""
    settings = DeviceSettings(device=GPU, precision=precision)
    model = load_model("torchscript", files["torchscript"], SIGNATURE, settings)
    outputs = model.forward([torch.from_numpy(windows[:3]).to(GPU)])
    for spec, output in zip(SIGNATURE.outputs, outputs, strict=True):
        assert (output.dtype, output.shape) == (torch.float32, (3, *spec.shape))
        assert output.is_contiguous()
        assert str(output.device) == GPU
        assert output.is_inference()


def test_two_precisions_side_by_side(files: dict[str, bytes], reference: DeviceModel, windows: Array) -> None:
    """A model in TF32 does not make one in FP32 less exact, whichever computes first."""
    models = {
        precision: load_model(
            "torchscript", files["torchscript"], SIGNATURE, DeviceSettings(device=GPU, precision=precision)
        )
        for precision in ("tf32", "fp32")
    }
    for precision in ("tf32", "fp32", "tf32", "fp32"):
        found = measure(models[precision], reference, [windows], GPU)
        assert all(error.is_within(precision) for error in found)


def test_a_model_can_be_captured(files: dict[str, bytes], windows: Array) -> None:
    """In a CUDA graph, after warm-up on a stream of its own; the replay answers bit for bit the same."""
    for precision in TOLERANCES:
        settings = DeviceSettings(device=GPU, precision=precision)
        model = load_model("torchscript", files["torchscript"], SIGNATURE, settings)
        inputs = [torch.from_numpy(windows[:8]).to(GPU)]
        stream = torch.cuda.Stream(GPU)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(4):
                wanted = [output.clone() for output in model.forward(inputs)]
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = model.forward(inputs)
        graph.replay()
        torch.cuda.synchronize(GPU)
        assert all(map(torch.equal, wanted, outputs)), precision
