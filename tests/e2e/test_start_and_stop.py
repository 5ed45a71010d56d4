"""From the first message to the last: refusals to start, loading, restarts and drains."""

import asyncio
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from tests.e2e import zoo
from tests.e2e.calls import (
    OWN_CONNECTION,
    PATIENCE_S,
    Ending,
    RpcStream,
    request,
    streamed,
    tensor,
    unary,
)
from tests.e2e.conftest import Launch
from tests.e2e.service import LOGGING, Service, clean_environment, command, one_line, pause, run_server
from tickring.v1 import inference_pb2, model_pb2

Code = grpc.StatusCode
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


def doubler(name: str = "doubler") -> inference_pb2.PredictRequest:
    """A request to a model of `small`."""
    return request(name, tensor("x", [[1, 2, 3, 4]]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two models that are loaded at once."""
    return zoo.build(tmp_path_factory.mktemp("small"), "doubler", "pair")


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


class Watch:
    """One health Watch, kept from the start of a server to its end."""

    def __init__(self, channel: grpc.aio.Channel, service: str = "") -> None:
        ask: Any = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        self.call = ask(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)

    async def next(self) -> int | None:
        """The next status; None when the server has ended it."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self.call.read()
        return answer.status if isinstance(answer, health_pb2.HealthCheckResponse) else None


# -- it does not start --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["--grpc-port", "--http-port"])
def test_port_in_use_is_one_line(which: str) -> None:
    """Exit code 1, and which port of which host."""
    with taken_port() as port:
        done = run_server(["--grpc-port", "0", "--http-port", "0", which, str(port)])
    assert done.returncode == 1
    assert one_line(
        f"tickring-server: cannot listen on 127.0.0.1:{port}: Address already in use", done.stderr
    )


def test_port_of_another_tickring_is_in_use(bundled: Service) -> None:
    """Front ends of one server share their port; those of two must not."""
    port = bundled.target.rpartition(":")[2]
    done = run_server(["--grpc-port", port, "--http-port", "0"])
    assert done.returncode == 1
    assert one_line(
        f"tickring-server: cannot listen on 127.0.0.1:{port}: Address already in use", done.stderr
    )


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_host_that_is_not_here_is_one_line(host: str) -> None:
    """A name that does not resolve, an address of somebody else."""
    done = run_server(["--host", host, "--grpc-port", "0", "--http-port", "0"])
    assert done.returncode == 1
    assert one_line(f"tickring-server: cannot listen on {host}:0: .+", done.stderr)


def test_bad_setting_is_one_line() -> None:
    """Exit code 2, with the path, the value and what is allowed."""
    done = run_server(["--grpc-port", "70000"])
    assert done.returncode == 2
    assert one_line("server.grpc_port = 70000: .*65535.*", done.stderr)


def test_check_config_starts_nothing(small: Path) -> None:
    """Settings and repository are read, models are not."""
    done = run_server(["--check-config", "--models", str(small)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration is valid\n", "")


def test_print_config_is_a_config(tmp_path: Path) -> None:
    """What it prints, it reads, and prints again."""
    first = run_server(["--print-config", "--profile", "off_hours", "--host", "::1"])
    file = tmp_path / "server.toml"
    file.write_text(first.stdout)
    second = run_server(["--print-config", "--config", str(file)])
    assert (first.returncode, second.returncode) == (0, 0)
    assert 'host = "::1"' in first.stdout
    assert second.stdout == first.stdout


def test_changed_model_file_is_not_served(tmp_path: Path) -> None:
    """The manifest's sha256 is not the file's: exit code 1, naming the file."""
    zoo.build(tmp_path, "doubler")
    file = tmp_path / "doubler" / "1" / "model.pt"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    done = run_server(["--models", str(tmp_path), "--grpc-port", "0", "--http-port", "0"])
    assert done.returncode == 1
    assert f"{file}: sha256 is " in done.stderr


def test_model_that_is_not_what_its_manifest_says_is_not_served(tmp_path: Path) -> None:
    """Found at warm-up: exit code 1, naming output, type and shape."""
    zoo.add_model(tmp_path, "doubler", zoo.archive(zoo.Doubler()), [zoo.X], [("y", "FP64", [3])])
    done = run_server(["--models", str(tmp_path), "--grpc-port", "0", "--http-port", "0"])
    assert done.returncode == 1
    assert "doubler returns y as float32 [1, 4], its manifest says float64 [1, 3]" in done.stderr


# -- loading, restarting, draining --------------------------------------------------------------


def probe(port: int, path: str) -> int:
    """The status of an HTTP probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def state_of_model(channel: grpc.aio.Channel) -> int:
    """Of the default model's version, as ModelService tells it."""
    raw = await unary(channel, b"", method="/tickring.v1.ModelService/GetModel")
    (version,) = model_pb2.GetModelResponse.FromString(raw.raw).model.versions
    return version.state


def check_unavailable(ending: Ending, reason: str, message: str) -> None:
    """UNAVAILABLE, for which reason, and when to come back."""
    assert (ending.code, ending.reason, ending.message) == (Code.UNAVAILABLE, reason, message)
    assert ending.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


async def test_a_whole_life(launch: Launch, small: Path) -> None:
    """Loading, ready, its engine lost, ready again, draining, gone, as clients of two front ends see it."""
    port, http_port = free_ports(2)
    service = launch(
        *("--models", str(small), "--frontends", "2"),
        *("--grpc-port", str(port), "--http-port", str(http_port)),
        settings={"TICKRING_MODELS__DEFAULT_MODEL": "doubler"},
    )
    async with connections(f"127.0.0.1:{port}", 24) as channels:
        channel = channels[0]
        with service.paused():
            watch, model_watch = Watch(channel), Watch(channel, "doubler")
            assert (await watch.next(), await model_watch.next()) == (NOT_SERVING, NOT_SERVING)
            assert (probe(http_port, "/healthz"), probe(http_port, "/readyz")) == (200, 503)
            ending = await unary(channel, doubler())
            assert (ending.code, ending.reason) == (Code.FAILED_PRECONDITION, "MODEL_NOT_READY")
            assert ending.message == "doubler is loading or warming up"
            assert await state_of_model(channel) == model_pb2.MODEL_STATE_LOADING

        assert (await watch.next(), await model_watch.next()) == (SERVING, SERVING)
        service.ready()
        assert probe(http_port, "/readyz") == 200
        assert await state_of_model(channel) == model_pb2.MODEL_STATE_READY
        for each in channels:  # the kernel spreads connections over the front ends
            assert (await unary(each, doubler(""))).response.model_name == "doubler"

        lost = service.pid("engine-0")
        seen = len(service.logged())
        with paused_successor(service, lost, seen):
            assert (await watch.next(), await model_watch.next()) == (NOT_SERVING, NOT_SERVING)
            check_unavailable(
                await unary(channel, doubler()), "ENGINE_RESTARTING", "the engine is restarting"
            )
            assert await state_of_model(channel) == model_pb2.MODEL_STATE_LOADING
            assert probe(http_port, "/readyz") == 503
        assert (await watch.next(), await model_watch.next()) == (SERVING, SERVING)
        assert (await unary(channel, doubler())).code is Code.OK

        await drain(service, channels, watch)
        assert await model_watch.next() == NOT_SERVING
        assert await model_watch.next() is None
    assert service.check_ends() >= 24
    by_process = {
        line["process"]: line["admitted"] for line in service.logged() if line["event"] == "drained"
    }
    assert by_process.keys() == {"frontend-0", "frontend-1"}
    assert min(by_process.values()) > 0


@asynccontextmanager
async def connections(target: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """So many channels, each with a connection of its own."""
    channels = [grpc.aio.insecure_channel(target, options=OWN_CONNECTION) for _ in range(count)]
    try:
        yield channels
    finally:
        for channel in channels:
            await channel.close(None)


@contextmanager
def paused_successor(service: Service, lost: int, seen: int) -> Iterator[None]:
    """Kills the engine; the next one does not get on with loading while the context lasts."""
    os.kill(lost, signal.SIGKILL)
    successor = service.wait_for("spawned", after=seen, child="engine-0")["pid"]
    pause(successor)
    try:
        yield
    finally:
        os.kill(successor, signal.SIGCONT)


async def drain(service: Service, channels: Sequence[grpc.aio.Channel], watch: Watch) -> None:
    """SIGTERM while requests are in flight: they are answered, nothing else is, and the server is gone.

    `channels` reach every front end, the first of them is watched by `watch`.
    """
    channel, *others = channels
    watches = [Watch(each) for each in others]
    for each in watches:
        assert await each.next() == SERVING
    open_stream, closed_stream = RpcStream(channel), RpcStream(channel)
    with service.paused():
        for stream in (open_stream, closed_stream):
            await stream.send(streamed(1, doubler()), b"\xff")
            assert (await stream.answer())[0] == 0  # so the request before it has been admitted
        await closed_stream.half_close()
        await state_of_model(channel)  # on the same connection: the half-close has arrived before it
        service.signal(signal.SIGTERM)
        assert await watch.next() == NOT_SERVING
        assert await watch.next() is None  # a watcher does not hold the drain
        for each in watches:  # or the late call might come to a front end that has not heard of it yet
            assert (await each.next(), await each.next()) == (NOT_SERVING, None)
        late = await unary(channel, doubler())
        assert late.code is Code.UNAVAILABLE

    for stream, code in ((open_stream, Code.UNAVAILABLE), (closed_stream, Code.OK)):
        answers, end = await stream.rest()
        assert [(sequence, ending.code) for sequence, ending in answers] == [(1, Code.OK)]
        assert end.code is code
        if code is Code.UNAVAILABLE:
            check_unavailable(end, "DRAINING", "the server is draining")
    # Far from the 30 s of grace: what was in flight has ended, so the server ends.
    assert await asyncio.to_thread(service.wait, 10.0) == 0


async def test_second_signal_stops_at_once(launch: Launch, small: Path) -> None:
    """A drain that takes too long for somebody: calls in flight end, and no process is left."""
    service = launch("--models", str(small), "--host", "::1")
    assert service.target.startswith("[::1]:")  # an IPv6 address, for once
    async with grpc.aio.insecure_channel(service.target) as channel:
        assert (await unary(channel, doubler())).code is Code.OK
        stream = RpcStream(channel)
        with service.paused():
            await stream.send(streamed(1, doubler()), b"\xff")
            await stream.answer()
            service.signal(signal.SIGTERM)
            service.wait_for("draining")
            service.signal(signal.SIGTERM)
            await asyncio.to_thread(service.wait, 10.0)
        answers, end = await stream.rest()
        assert (answers, end.code) == ([], Code.UNAVAILABLE)


async def test_stop_while_loading(launch: Launch, small: Path) -> None:
    """There is nothing to finish: it does not wait for the engine to get ready."""
    service = launch("--models", str(small))
    with service.paused():
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait, 10.0) == 0


def test_stop_though_nobody_reads_what_it_writes(small: Path) -> None:
    """Its log's reader has gone: that is no reason to stay."""
    with subprocess.Popen(
        command("--models", str(small), "--grpc-port", "0", "--http-port", "0"),
        env=clean_environment(LOGGING),
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10.0) == 0
