"""A device for passages, real or fake, and the same few models on both."""

import atexit
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scheduler.executor.batch_limits import BatchLimits
from scheduler.executor.cuda import CudaDevice, CudaInstance, map_slab
from scheduler.executor.cuda_calls import CudaCalls
from scheduler.executor.cuda_program import Program
from scheduler.executor.instance import Instance
from scheduler.executor.runner import Array, DeviceModel, DeviceSettings, Runner
from scheduler.executor.torch_cuda import TorchCuda
from scheduler.executor.torch_model import TorchModel
from scheduler.signature import ModelSignature
from tests.scheduler.executor.cuda_passage import BUCKETS, TWO_IN_TWO_OUT, Notebook, scaled
from tests.scheduler.executor.fake_cuda import FakeCuda, FakeDeviceModel
from tests.scheduler.executor.passage import Passage
from tests.scheduler.executor.test_cuda_failures import Reading, fits

DEVICE = "cuda:0"
SCALED = "scaled"
TOUCHY = "touchy"
RECIPROCAL = "reciprocal"
HUNGRY = "hungry"
# Of a row of the hungry model.
ROW_BYTES = 64 << 20
# Memory that has been registered with the driver must not go away before the process does.
KEPT: list[Any] = []
atexit.register(KEPT.clear)


class Scaled(nn.Module):
    """What `scaled` computes."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return (x * scale.unsqueeze(1)).float(), torch.stack([scale, scale + 1], 1).to(torch.int64)


class Touchy(Scaled):
    """Looks at its rows, so that it waits for the device, and cannot be captured; raises on 13."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        if bool((x[:, 0] == 13).any()):
            raise RuntimeError("unlucky row")
        return super().forward(x, scale)


class Reciprocal(Scaled):
    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / x, super().forward(x, scale)[1]


class Hungry(Scaled):
    """Takes `ROW_BYTES` for each row while it computes."""

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        taken = torch.empty(len(x) * ROW_BYTES, dtype=torch.uint8, device=x.device)
        taken[:1] = 1
        return super().forward(x, scale)


MODULES = {SCALED: Scaled, TOUCHY: Touchy, RECIPROCAL: Reciprocal, HUNGRY: Hungry}


class World(Protocol):
    """A device, and the models above on it."""

    calls: CudaCalls

    def model(self, name: str) -> DeviceModel:
        """One of `MODULES`."""
        ...

    def room_for(self, most: int) -> contextlib.AbstractContextManager[None]:
        """Memory for so many rows of the hungry model and no more, meanwhile."""
        ...


class FakeWorld:
    """Nothing happens before it is waited for."""

    def __init__(self) -> None:
        self._fake = FakeCuda()
        self.calls: CudaCalls = self._fake
        self._made: list[FakeDeviceModel] = []

    def model(self, name: str) -> DeviceModel:
        kind = Reading if name == TOUCHY else FakeDeviceModel
        compute = reciprocal if name == RECIPROCAL else scaled
        self._made.append(kind(self._fake, TWO_IN_TWO_OUT, compute))
        return self._made[-1]

    @contextlib.contextmanager
    def room_for(self, most: int) -> Iterator[None]:
        self._made[-1].at_launch = fits(most)
        yield
        self._made[-1].at_launch = fits(1 << 20)


class CudaWorld:
    """A GPU."""

    def __init__(self) -> None:
        self.calls: CudaCalls = TorchCuda(DEVICE)

    def model(self, name: str) -> DeviceModel:
        return on_device(MODULES[name](), TWO_IN_TWO_OUT)

    @contextlib.contextmanager
    def room_for(self, most: int) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        allowed = torch.cuda.memory_reserved(DEVICE) + most * ROW_BYTES + ROW_BYTES // 2
        torch.cuda.set_per_process_memory_fraction(allowed / total, DEVICE)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


def on_device(module: nn.Module, its_signature: ModelSignature) -> DeviceModel:
    return TorchModel(module.eval().to(DEVICE), its_signature, DeviceSettings(DEVICE), "plain")


def reciprocal(inputs: Sequence[Array]) -> Sequence[Array]:
    with np.errstate(divide="ignore"):
        return 1 / inputs[0], scaled(inputs)[1]


class Forced(CudaInstance):
    """Finds one program to be faster than all others."""

    wanted = "plain, staged"

    def _measure(self, model: int, program: Program, bucket: int, rounds: int) -> tuple[int, Sequence[Array]]:
        _, outputs = super()._measure(model, program, bucket, rounds)
        return (1 if program.name == self.wanted else 1_000_000), outputs


class DevicePassage(Passage):
    """A passage over any device. `with … as passage: passage.warm(); passage.ask(…)`."""

    def __init__(
        self, calls: CudaCalls, model: DeviceModel, *, wanted: str = "plain, staged", graphs: bool = True
    ) -> None:
        self.calls = calls
        self.model = model
        self.graphs = graphs
        self.wanted = wanted
        self.notes = Notebook()
        super().__init__(model, BUCKETS)  # type: ignore[arg-type]  # only its signature is used

    def make_instance(self, runner: Runner, buckets: tuple[int, ...]) -> Instance:
        self.limits = BatchLimits(self.dispatcher.limit_batches)
        slab = map_slab(self.calls, self.arena, buckets[-1], self.notes)
        KEPT.append((self.arena, slab))
        self.device = CudaDevice(self.calls, slab, self.graphs, self.limits, self.notes)
        return self.another()

    def another(self, *, urgent: bool = False) -> Forced:
        instance = Forced(
            self.arena,
            self.dispatcher,
            {0: self.model},
            self.clock,
            lambda *failure: self.failures.append(failure),
            self.device,
            max_batch=BUCKETS[-1],
            urgent=urgent,
        )
        instance.wanted = self.wanted
        return instance

    def warm(self) -> dict[int, int]:
        measured = self.instance.warm_up(0, BUCKETS, 3)
        self.latency.seed(0, measured)
        self.dispatcher.warm()
        self.instance.settle()
        return measured

    def programs(self) -> set[str]:
        return {note["program"] for note in self.notes.infos if note["event"] == "bucket is warm"}
