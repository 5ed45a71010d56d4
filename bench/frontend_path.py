"""A front end without gRPC, and what nothing can do without: for gates."""

import os
import statistics
import time

import numpy as np

from bench.timing import median_us
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
from server.rpc.desk import Desk
from server.rpc.inference import PredictDialect
from server.telemetry.counting import RequestCounts
from server.telemetry.trace_context import Origin
from server.telemetry.tracer import Tracer
from tickring.v1 import inference_pb2, types_pb2

CALLS = 3000
ROUNDS = 10
# Of 3 ms each: a core keeps another clock for longer than a few of those.
COPY_ROUNDS = 100
SLOTS = 64
OUTPUTS = (3, 1, 1, 3, 128)

SIGNATURE = ModelSignature(
    name="windows",
    version=1,
    inputs=(TensorSpec("window", DataType.FP32, (50, 60)),),
    outputs=tuple(
        TensorSpec(f"output {number}", DataType.FP32, (size,)) for number, size in enumerate(OUTPUTS)
    ),
)


def raw_request() -> bytes:
    """One window of 12 kB, as it comes over the wire."""
    window = np.random.default_rng(0).standard_normal((1, 50, 60)).astype(np.float32)
    tensor = types_pb2.Tensor(
        name="window", data_type=types_pb2.DATA_TYPE_FP32, shape=window.shape, data=window.tobytes()
    )
    message = inference_pb2.PredictRequest(
        model_name="windows", priority=types_pb2.PRIORITY_REAL_TIME_TRADING, inputs=[tensor]
    )
    return message.SerializeToString()


class FrontendPath:
    """A front end without gRPC, and an engine that answers at once."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        dimensions = Dimensions(1, 1, SLOTS, SIGNATURE.input_row_bytes, SIGNATURE.output_row_bytes)
        self._arena = Arena.anonymous(dimensions)
        self._fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self._partition = Partition(self._arena, 0, self._fds[0], [self._fds[1]])
        self._port = _ring.EnginePort(self._arena.native, 0, self._fds[1], [self._fds[0]])
        engines = Engines(self._partition, [Forecasts(self._arena, 0)])
        engines.came(0)
        entrance = Entrance(self._partition, engines, DEFAULT_LIMITS, models=1, bulk_quantum_ns=10_000_000)
        model = ServedModel(
            index=0,
            row=0,
            signature=SIGNATURE,
            description="",
            format="torchscript",
            sha256={1: "0" * 64},
            loaded=(1,),
            max_rows=SLOTS,
            default_class=PriorityClass.BATCH_PROCESSING,
        )
        models = ModelTable([ModelRoutes(model, dict.fromkeys(["", "1"], model))], "windows")
        models.ready = True
        self._desk = Desk(
            self._partition,
            entrance,
            Admission(self._partition, entrance, engines, DEFAULT_LIMITS, 1),
            models,
            DEFAULT_LIMITS,
            ModelBooks(self._arena, 0),
            RequestCounts(self._arena, 0, models),
        )
        self._desk.tracer = tracer
        self._dialect = PredictDialect()
        self._origin = Origin(self._dialect.unary_method)
        self._slots = np.empty(1, np.uint32)
        self._outcomes = np.array([Outcome.RESULT], np.uint8)
        self.answers = 0

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def median_us(self, raw: bytes) -> float:
        """Of a request in and out, the engine's part aside."""
        return statistics.median(self._request_s(raw) for _ in range(CALLS)) * 1e6

    def _request_s(self, raw: bytes) -> float:
        started = time.perf_counter()
        arrived_ns = _ring.now_ns()
        self._desk.submit(
            self._dialect, self._dialect.parse(raw), arrived_ns, None, None, self._answered, self._origin
        )
        submitted = time.perf_counter()
        now_ns = _ring.now_ns()
        assert self._port.take(0, now_ns, 0, self._slots) == 1
        self._port.complete(self._slots, self._outcomes, now_ns, now_ns + 10, now_ns + 20, 1, 1)
        completed = time.perf_counter()
        self._partition.woken()
        return submitted - started + time.perf_counter() - completed

    def _answered(self, _ticket: object, result: bytes | RequestError) -> None:
        assert isinstance(result, bytes)
        self.answers += 1


def floor_us(raw: bytes) -> float:
    """Parsing the request, making the response, and copying rows in and out: nothing can do without."""
    slab = bytearray(SIGNATURE.input_row_bytes)
    rows = [np.zeros((1, size), np.float32).tobytes() for size in OUTPUTS]

    def work() -> None:
        message = inference_pb2.PredictRequest.FromString(raw)
        data = message.inputs[0].data
        slab[:] = data
        inference_pb2.PredictResponse(
            model_name=message.model_name,
            model_version="1",
            outputs=[
                types_pb2.Tensor(
                    name=spec.name, data_type=types_pb2.DATA_TYPE_FP32, shape=(1, *spec.shape), data=row
                )
                for spec, row in zip(SIGNATURE.outputs, rows, strict=True)
            ],
        ).SerializeToString()

    return median_us(work, CALLS)


def request_rounds(path: FrontendPath) -> list[tuple[float, float]]:
    """What the gate of a request judges: its time, and the floor."""
    raw = raw_request()
    return [(path.median_us(raw), floor_us(raw)) for _ in range(ROUNDS)]


def copy_rounds() -> list[tuple[float, float]]:
    """What the gate of the copy judges."""
    return [_copy_us() for _ in range(COPY_ROUNDS)]


def _copy_us() -> tuple[float, float]:
    """Of a window into its slot, and of the same bytes by memoryview alone."""
    arena = Arena.anonymous(Dimensions(1, 1, SLOTS, SIGNATURE.input_row_bytes, SIGNATURE.output_row_bytes))
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    partition = Partition(arena, 0, fds[0], [fds[1]])
    submission = partition.reserve(1, 0, 0, lambda _: None)
    data = bytes(SIGNATURE.input_row_bytes)
    slab = memoryview(bytearray(len(data)))

    def copy() -> None:
        slab[:] = data

    written = median_us(lambda: partition.write_input(submission, 0, len(data), data), CALLS)
    for fd in fds:
        os.close(fd)
    return written, median_us(copy, CALLS)
