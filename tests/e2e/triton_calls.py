"""Every public method of tritonclient's gRPC clients, unmodified, against a server with the bundled model.

    python tests/e2e/triton_calls.py TARGET

Runs in an environment of its own (see triton_requirements.txt) and imports nothing of ours: both sides
register the same protobuf names. Prints one line for each call; ends with 1 and a traceback when an answer
is not what it has to be.
"""

import asyncio
import queue
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

MODEL = "sp500_direction"
OUTPUTS = {
    "classification_probs": (3,),
    "regression_mean": (1,),
    "regression_uncertainty": (1,),
    "ensemble_weights": (3,),
    "features": (128,),
}
PATIENCE_S = 30.0
WINDOWS = np.random.default_rng(0).standard_normal((2, 50, 60), dtype=np.float32)

Call = Callable[[], Any]


def window(rows: int = 2) -> triton.InferInput:
    """The model's input."""
    given = triton.InferInput("window", [rows, 50, 60], "FP32")
    given.set_data_from_numpy(WINDOWS[:rows])
    return given


def check_result(result: Any, rows: int = 2, request_id: str = "") -> str:
    """All outputs, in the shapes of the model, readable as arrays."""
    for name, shape in OUTPUTS.items():
        values = result.as_numpy(name)
        assert values.shape == (rows, *shape), (name, values.shape)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    response = result.get_response()
    batch = response.parameters["tickring_batch_size"].int64_param
    assert response.id == request_id, response.id
    probabilities = result.as_numpy("classification_probs").sum(axis=1)
    assert np.allclose(probabilities, 1, atol=1e-5), probabilities
    assert response.parameters["tickring_queue_wait_ns"].int64_param > 0
    return f"{len(OUTPUTS)} outputs of {rows} rows, batch {batch}"


def say(name: str, text: object) -> None:
    """One line of the transcript."""
    print(f"{name:<48} {' '.join(str(text).split())[:150]}", flush=True)


def refused(code: str) -> Callable[[object], str]:
    """What a call that must fail has to fail with."""

    def check(error: object) -> str:
        assert isinstance(error, InferenceServerException), error
        assert error.status() == f"StatusCode.{code}", error
        return f"{error.status()} {error.message()}"

    return check


def expect(condition: Callable[[Any], object]) -> Callable[[Any], str]:
    """The answer, when it is as it has to be."""

    def check(answer: Any) -> str:
        assert condition(answer), answer
        return str(answer)

    return check


def steps(client: Any) -> list[tuple[str, Call, Callable[[Any], str]]]:
    """Calls without a stream, the same for both clients: name, call, check."""
    unserved = refused("UNIMPLEMENTED")
    return [
        ("is_server_live", client.is_server_live, expect(lambda live: live is True)),
        ("is_server_ready", client.is_server_ready, expect(lambda ready: ready is True)),
        ("is_model_ready", lambda: client.is_model_ready(MODEL), expect(lambda ready: ready is True)),
        ("is_model_ready, version", lambda: client.is_model_ready(MODEL, "1"), expect(lambda r: r is True)),
        ("is_model_ready, unknown", lambda: client.is_model_ready("none"), expect(lambda r: r is False)),
        (
            "get_server_metadata",
            client.get_server_metadata,
            expect(lambda m: m.name == "tickring" and "statistics" in m.extensions),
        ),
        (
            "get_server_metadata, JSON",
            lambda: client.get_server_metadata(as_json=True),
            expect(lambda m: m["name"] == "tickring"),
        ),
        (
            "get_model_metadata",
            lambda: client.get_model_metadata(MODEL),
            expect(lambda m: list(m.inputs[0].shape) == [-1, 50, 60]),
        ),
        ("get_model_metadata, unknown", lambda: client.get_model_metadata("none"), refused("NOT_FOUND")),
        (
            "get_model_config",
            lambda: client.get_model_config(MODEL),
            expect(lambda m: m.config.max_batch_size > 0 and m.config.dynamic_batching.priority_levels == 5),
        ),
        (
            "get_model_repository_index",
            client.get_model_repository_index,
            expect(lambda m: [model.state for model in m.models] == ["READY"]),
        ),
        ("load_model", lambda: client.load_model(MODEL), expect(lambda answer: answer is None)),
        ("load_model, unknown", lambda: client.load_model("none"), refused("NOT_FOUND")),
        (
            "load_model, otherwise than it is",
            lambda: client.load_model(MODEL, config="{}"),
            refused("INVALID_ARGUMENT"),
        ),
        # Of another one: this server has only one, which the next calls need.
        ("unload_model", lambda: client.unload_model("none"), refused("NOT_FOUND")),
        ("infer", lambda: client.infer(MODEL, [window()], request_id="a"), lambda r: check_result(r, 2, "a")),
        (
            "infer, priority, timeout, version",
            lambda: client.infer(MODEL, [window(1)], "1", priority=1, timeout=20_000_000),
            lambda r: check_result(r, 1),
        ),
        (
            "infer, requested outputs",
            lambda: client.infer(
                MODEL,
                [window()],
                outputs=[triton.InferRequestedOutput("features")],
                client_timeout=PATIENCE_S,
            ),
            lambda result: expect(lambda names: names == ["features"])(
                [output.name for output in result.get_response().outputs]
            ),
        ),
        (
            "infer, own parameters and headers",
            lambda: client.infer(
                MODEL, [window()], parameters={"desk": "rates"}, headers={"tickring-priority": "low"}
            ),
            check_result,
        ),
        (
            "infer, compressed",
            lambda: client.infer(MODEL, [window()], compression_algorithm="gzip"),
            check_result,
        ),
        (
            "infer, priority 9",
            lambda: client.infer(MODEL, [window()], priority=9),
            refused("INVALID_ARGUMENT"),
        ),
        ("infer, unknown model", lambda: client.infer("none", [window()]), refused("NOT_FOUND")),
        (
            "get_inference_statistics",
            lambda: client.get_inference_statistics(MODEL),
            expect(
                lambda m: (
                    m.model_stats[0].inference_stats.success.count
                    == m.model_stats[0].inference_stats.queue.count
                    >= 5
                )
            ),
        ),
        (
            "get_inference_statistics, all",
            client.get_inference_statistics,
            expect(lambda m: [s.name for s in m.model_stats] == [MODEL]),
        ),
        (
            "get_trace_settings",
            client.get_trace_settings,
            expect(lambda m: list(m.settings["trace_level"].value) == ["OFF"]),
        ),
        (
            "update_trace_settings",
            lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            unserved,
        ),
        (
            "get_log_settings",
            client.get_log_settings,
            expect(lambda m: m.settings["log_error"].bool_param),
        ),
        ("update_log_settings", lambda: client.update_log_settings({"log_verbose_level": 1}), unserved),
        (
            "get_system_shared_memory_status",
            client.get_system_shared_memory_status,
            expect(lambda m: not m.regions),
        ),
        (
            "register_system_shared_memory",
            lambda: client.register_system_shared_memory("r", "/r", 64),
            unserved,
        ),
        ("unregister_system_shared_memory", client.unregister_system_shared_memory, unserved),
        (
            "get_cuda_shared_memory_status",
            client.get_cuda_shared_memory_status,
            expect(lambda m: not m.regions),
        ),
        (
            "register_cuda_shared_memory",
            lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64),
            unserved,
        ),
        ("unregister_cuda_shared_memory", client.unregister_cuda_shared_memory, unserved),
    ]


def sync_calls(target: str) -> None:
    """tritonclient.grpc."""
    with triton.InferenceServerClient(target) as client:
        for name, call, check in steps(client):
            try:
                answer = call()
            except InferenceServerException as error:
                answer = error
            say(name, check(answer))

        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

        def callback(result: Any, error: Any) -> None:
            answers.put((result, error))

        for number in range(8):
            client.async_infer(MODEL, [window()], callback, request_id=str(number))
        got = sorted(_good(answers).get_response().id for _ in range(8))
        assert got == [str(number) for number in range(8)], got
        say("async_infer", f"8 answers: {got}")

        client.start_stream(callback)
        for number in range(50):
            client.async_stream_infer(
                MODEL, [window()], request_id=str(number), priority=1 + number % 5, timeout=20_000_000
            )
        got = sorted(int(_good(answers).get_response().id) for _ in range(50))
        assert got == [*range(50)], got
        say("start_stream, async_stream_infer", "50 answers, one for each id")
        client.async_stream_infer("none", [window()], request_id="bad")
        client.async_stream_infer(MODEL, [window()], request_id="good", enable_empty_final_response=True)
        both = [answers.get(timeout=PATIENCE_S) for _ in range(2)]
        (failed,) = (error for _, error in both if error is not None)
        (result,) = (result for result, _ in both if result is not None)
        assert "no model 'none'" in failed.message(), failed
        assert result.get_response().parameters["triton_final_response"].bool_param
        check_result(result, 2, "good")
        say("async_stream_infer, a bad one between", failed.message())
        client.stop_stream()
        assert answers.empty()
        say("stop_stream", "ended")


def _good(answers: "queue.Queue[tuple[Any, Any]]") -> Any:
    result, error = answers.get(timeout=PATIENCE_S)
    assert error is None, error
    return result


async def aio_calls(target: str) -> None:
    """tritonclient.grpc.aio."""
    async with triton_aio.InferenceServerClient(target) as client:
        for name, call, check in steps(client):
            try:
                answer = await call()
            except InferenceServerException as error:
                answer = error
            say(f"aio {name}", check(answer))
        results = await asyncio.gather(
            *(client.infer(MODEL, [window()], request_id=str(i)) for i in range(20))
        )
        for number, result in enumerate(results):
            check_result(result, 2, str(number))
        say("aio infer, 20 at once", f"{len(results)} answers")

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(50):
                name = "none" if number == 17 else MODEL
                yield {"model_name": name, "inputs": [window()], "request_id": str(number)}

        good, bad = [], []
        async for result, failed in client.stream_infer(requests()):
            if failed is None:
                good.append(int(result.get_response().id))
            else:
                bad.append(failed.message())
        assert sorted(good) == sorted({*range(50)} - {17}), good
        assert len(bad) == 1, bad
        say("aio stream_infer", f"{len(good)} answers and 1 error: {bad[0]}")


async def within(patience_s: float, call: Coroutine[Any, Any, None]) -> None:
    """So that nothing hangs."""
    await asyncio.wait_for(call, patience_s)


if __name__ == "__main__":
    sync_calls(sys.argv[1])
    asyncio.run(within(2 * PATIENCE_S, aio_calls(sys.argv[1])))
    print("all as expected")
