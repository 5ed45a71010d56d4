"""A `.pt2` model behind a real server: loaded, warmed up, called well and badly."""

import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.e2e.calls import array, exchange, request, streamed, tensor, unary
from tests.e2e.conftest import Launch
from tests.e2e.service import Service
from tests.e2e.zoo import tensor_table

# Every batch size that the program was exported for, and no more.
BUCKETS = [1, 2, 4]
SETTINGS = {"TICKRING_SERVER__FRONTENDS": "1"}


class Spread(nn.Module):
    """Where a value lies in its row, from 0 to 1; and the row's size."""

    def __init__(self) -> None:
        super().__init__()
        self.floor = nn.Parameter(torch.tensor(1e-6))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        size = high - low + self.floor  # which keeps a row of equals finite
        return {"size": size.squeeze(1), "place": (x - low) / size}


def write(repository: Path, rows: object) -> Path:
    """A repository of one model, named spread: x FP32 [4] → place FP32 [4], size FP32 []."""
    buffer = io.BytesIO()
    example = torch.arange(8.0).reshape(2, 4)
    dynamic = None if rows is None else ({0: rows},)
    torch.export.save(torch.export.export(Spread().eval(), (example,), dynamic_shapes=dynamic), buffer)
    file = buffer.getvalue()
    folder = repository / "spread" / "1"
    folder.mkdir(parents=True)
    (folder / "model.pt2").write_bytes(file)
    (folder.parent / "model.toml").write_text(
        'name = "spread"\nformat = "exported_program"\nprecision = "fp32"\n'
        + tensor_table("inputs", "x", "FP32", [4])
        + tensor_table("outputs", "place", "FP32", [4])
        + tensor_table("outputs", "size", "FP32", [])
        + f'[versions.1]\nsha256 = "{hashlib.sha256(file).hexdigest()}"\n'
        + f"[scheduler]\nbuckets = {BUCKETS}\n"
    )
    return repository


@pytest.fixture(scope="module")
def served(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serves the program."""
    repository = write(tmp_path_factory.mktemp("exported"), torch.export.Dim("batch", max=BUCKETS[-1]))
    service = launch("--models", str(repository), settings=SETTINGS).ready()
    yield service
    service.stop()


@pytest.fixture
async def its_channel(served: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it."""
    async with grpc.aio.insecure_channel(served.target) as channel:
        yield channel


async def assert_answers(channel: grpc.aio.Channel, rows: int) -> None:
    """A good call of so many rows, larger than a batch if need be."""
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    ending = await unary(channel, request("spread", tensor("x", x)))
    place, size = map(array, ending.response.outputs)
    with torch.inference_mode():
        wanted = Spread()(torch.from_numpy(x))
    np.testing.assert_array_equal(place, wanted["place"].numpy())
    np.testing.assert_array_equal(size, wanted["size"].numpy())


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
async def test_good_calls_are_answered(its_channel: grpc.aio.Channel, rows: int) -> None:
    """In the manifest's order of outputs, padded and split as batches need it."""
    await assert_answers(its_channel, rows)


async def test_a_bad_call_fails_alone(its_channel: grpc.aio.Channel) -> None:
    """At the door; the program's own checks of its inputs are never needed."""
    good = request("spread", tensor("x", [[1.0, 2.0, 3.0, 4.0]]))
    bad = request("spread", tensor("x", [[1.0, 2.0, 3.0]]))
    answers, end = await exchange(its_channel, streamed(1, good), streamed(2, bad), streamed(3, good))
    assert [answers[n].code for n in (1, 2, 3)] == [
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OK,
    ]
    assert end.code is grpc.StatusCode.OK
    await assert_answers(its_channel, 2)


def test_a_program_of_one_batch_size_is_not_served(launch: Launch, tmp_path: Path) -> None:
    """The server says why, and gives up."""
    service = launch("--models", str(write(tmp_path, None)), settings=SETTINGS)
    said = service.wait_for("model cannot be served")
    assert "with a batch size of 2; needed is any size" in said["error"]
    service.kill()
