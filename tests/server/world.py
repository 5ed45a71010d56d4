"""A front end without gRPC, and the engine's end of its lanes in the test's own hands."""

import os
from dataclasses import dataclass, field

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.errors import RequestError
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition
from scheduler.priority import DEFAULT_LIMITS, PriorityClass
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.admission import Admission
from server.model_books import ModelBooks
from server.models import ModelRoutes, ModelTable, ServedModel
from server.rpc.desk import Desk, Ticket
from server.rpc.inference import PredictDialect
from server.telemetry.counting import RequestCounts
from server.telemetry.trace_context import Origin
from tickring.v1 import inference_pb2, types_pb2

SIGNATURE = ModelSignature(
    name="pair",
    version=3,
    inputs=(TensorSpec("x", DataType.FP32, (2, 3)), TensorSpec("k", DataType.INT64, ())),
    outputs=(
        TensorSpec("y", DataType.FP32, (2,)),
        TensorSpec("z", DataType.FP64, ()),
        TensorSpec("ok", DataType.BOOL, (1,)),
    ),
)
MAX_ROWS = 8
BULK_QUANTUM_NS = 10_000_000
# Of a request that no caller has sent.
NO_RPC = Origin("")


def served(
    signature: ModelSignature = SIGNATURE,
    *,
    index: int = 0,
    versions: tuple[int, ...] | None = None,
    default_class: PriorityClass = PriorityClass.BATCH_PROCESSING,
) -> ServedModel:
    """A model as a front end knows it."""
    return ServedModel(
        index=index,
        row=index,
        signature=signature,
        description="for tests",
        format="torchscript",
        sha256={version: f"{version:064x}" for version in versions or (signature.version,)},
        loaded=(signature.version,),
        max_rows=MAX_ROWS,
        default_class=default_class,
    )


def routes(model: ServedModel) -> ModelRoutes:
    """A model of which one version is loaded, with no aliases."""
    return ModelRoutes(model, dict.fromkeys(["", "latest", str(model.signature.version)], model))


def table(*models: ServedModel, default: str | None = None, ready: bool = True) -> ModelTable:
    """A table of these models, or of `pair` alone, its default."""
    found = ModelTable([routes(model) for model in models or (served(),)], default if models else "pair")
    found.ready = ready
    return found


def tensor(name: str, array: np.ndarray, data_type: DataType) -> types_pb2.Tensor:
    """An input as a client sends it."""
    return types_pb2.Tensor(
        name=name,
        data_type=types_pb2.DataType.Name(data_type.proto_value),
        shape=array.shape,
        data=array.astype(data_type.dtype).tobytes(),
    )


def request(rows: int = 1, **fields: object) -> inference_pb2.PredictRequest:
    """A good request to `pair`: element i of x is i, k is the row."""
    x = np.arange(rows * 6).reshape(rows, 2, 3)
    inputs = [tensor("x", x, DataType.FP32), tensor("k", np.arange(rows), DataType.INT64)]
    good = inference_pb2.PredictRequest(model_name="pair", inputs=inputs)
    good.MergeFrom(inference_pb2.PredictRequest(**fields))  # type: ignore[arg-type]
    return good


@dataclass
class FrontEnd:
    """One front end's desk, over an arena of its own."""

    slots: int = 16
    model_count: int = 1
    engine_count: int = 1
    models: ModelTable = field(default_factory=table)
    answers: list[bytes | RequestError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arena = Arena.anonymous(
            Dimensions(
                frontends=1,
                models=self.model_count,
                engines=self.engine_count,
                slots_per_frontend=self.slots,
                input_row_bytes=SIGNATURE.input_row_bytes,
                output_row_bytes=SIGNATURE.output_row_bytes,
            )
        )
        self.frontend_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.engine_fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(self.engine_count)]
        self.partition = Partition(self.arena, 0, self.frontend_fd, self.engine_fds)
        self.engines = Engines(
            self.partition, [Forecasts(self.arena, engine) for engine in range(self.engine_count)]
        )
        for engine in range(self.engine_count):
            self.engines.came(engine)
        self.entrance = Entrance(
            self.partition,
            self.engines,
            DEFAULT_LIMITS,
            models=self.model_count,
            bulk_quantum_ns=BULK_QUANTUM_NS,
        )
        self.admission = Admission(self.partition, self.entrance, self.engines, DEFAULT_LIMITS, 1)
        self.books = ModelBooks(self.arena, 0)
        self.desk = Desk(
            self.partition,
            self.entrance,
            self.admission,
            self.models,
            DEFAULT_LIMITS,
            self.books,
            RequestCounts(self.arena, 0, self.models),
        )
        self.dialect = PredictDialect()
        self.ports = [
            _ring.EnginePort(self.arena.native, engine, fd, [self.frontend_fd])
            for engine, fd in enumerate(self.engine_fds)
        ]
        self.engine = self.ports[0]

    def close(self) -> None:
        for fd in (self.frontend_fd, *self.engine_fds):
            os.close(fd)

    def submit(
        self,
        message: inference_pb2.PredictRequest | None = None,
        *,
        arrived_ns: int | None = None,
        expires_ns: int | None = None,
        metadata_priority: str | None = None,
        origin: Origin = NO_RPC,
    ) -> Ticket:
        """A request that has arrived now; its answer is appended to `answers`."""
        return self.desk.submit(
            self.dialect,
            request() if message is None else message,
            _ring.now_ns() if arrived_ns is None else arrived_ns,
            expires_ns,
            metadata_priority,
            lambda _, result: self.answers.append(result),
            origin,
        )

    def hold_all_but_two(self, item_ms: int = 2000) -> None:
        """From now on an item costs so much of the engine, which is more than a bulk quantum.

        Of a class that is not the most urgent, one enters empty lanes and one on the account of its class.
        """
        self.engine.publish_forecast(0, 1, item_ms * 1_000_000, [1], [1], [1], [1])

    def complete(self, *outcomes: Outcome, count: int = 8, after_ns: int = 0) -> None:
        """Takes up to `count` items as one batch and gives each of them its outcome, or the last one.

        `after_ns`: so long from now, as far as deadlines are concerned.
        """
        slots = np.empty(count, np.uint32)
        now_ns = _ring.now_ns() + after_ns
        taken = self.engine.take(0, now_ns, 0, slots)
        codes = [*outcomes, *[outcomes[-1]] * taken][:taken]
        self.engine.complete(
            slots[:taken], np.array(codes, np.uint8), now_ns, now_ns + 10, now_ns + 20, 7, count
        )
        self.partition.drain()
        self.partition.check_integrity()
