"""Who gets in: every case of TLS and of tokens, with the status that its caller sees."""

import asyncio
import hashlib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from client import Client, PermissionDenied, TlsFiles, Unauthenticated, Unavailable
from tests.certificates import Authority, Pair
from tests.e2e.calls import PATIENCE_S, Ending, RpcStream, ending_of, streamed, unary, window_request, windows
from tests.e2e.conftest import Launch
from tests.e2e.service import BUNDLED, Service, run_server
from tickring.kserve import grpc_service_pb2

Code = grpc.StatusCode
OLD = "1970-01-01T00:00:00Z"
LIST_MODELS = "/tickring.v1.ModelService/ListModels"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DEFAULT_TOKENS = {"engine": ("predict", ""), "panel": ("observe", ""), "old": ("predict", OLD)}


def token(name: str) -> str:
    """The token of this name, as its caller keeps it."""
    return f"tr_secret_of_{name}"


def shows(name: str) -> list[tuple[str, str]]:
    """The metadata of a call with this token."""
    return [("authorization", f"Bearer {token(name)}")]


@dataclass
class Guarded:
    """A server with TLS and tokens, its files, and who signed them."""

    folder: Path
    authority: Authority
    mutual: bool = False
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.pair = Pair(self.folder / "server.pem", self.folder / "server.key")
        self.tokens_file = self.folder / "tokens.toml"
        self.authority.sign("server").move_to(self.pair)
        self.write_tokens(DEFAULT_TOKENS)

    def start(self, launch: Launch) -> "Guarded":
        """Waits until it serves."""
        settings = BUNDLED | {
            "TICKRING_TLS__CERT": str(self.pair.cert),
            "TICKRING_TLS__KEY": str(self.pair.key),
            "TICKRING_AUTH__TOKENS_FILE": str(self.tokens_file),
            "TICKRING_SERVER__HANDSHAKE_TIMEOUT_S": "2",
        }
        if self.mutual:
            settings["TICKRING_TLS__CLIENT_CA"] = str(self.authority.cert)
        self.service = launch(settings=settings).ready()
        return self

    def write_tokens(self, tokens: Mapping[str, tuple[str, str]]) -> None:
        """Name to role and expiry, in one step."""
        new = self.folder / "tokens.new"
        new.write_text(
            "".join(
                f'[tokens.{name}]\nroles = ["{role}"]\n'
                f'sha256 = "{hashlib.sha256(token(name).encode()).hexdigest()}"\n'
                + (f"expires = {expires}\n" if expires else "")
                for name, (role, expires) in tokens.items()
            )
        )
        new.replace(self.tokens_file)

    def channel(
        self, ca: Path | None = None, pair: Pair | None = None, target: str | None = None
    ) -> grpc.aio.Channel:
        """A connection of its own, which trusts this authority; the server's own where none is given."""
        tls = TlsFiles(ca or self.authority.cert, *((pair.cert, pair.key) if pair else ()))
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.aio.secure_channel(target or self.service.target, tls.credentials(), options=options)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the servers, and the clients that they trust."""
    return Authority(tmp_path_factory.mktemp("own") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Nobody trusts it at first."""
    return Authority(tmp_path_factory.mktemp("other") / "authority")


@pytest.fixture(scope="module")
def guarded(
    launch: Launch, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """TLS and tokens. A test that changes its files puts them back."""
    server = Guarded(tmp_path_factory.mktemp("guarded"), authority).start(launch)
    yield server
    server.service.stop()
    assert "secret_of" not in server.service.output()


@pytest.fixture(scope="module")
def mutual(
    launch: Launch, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """Asks clients for a certificate too."""
    server = Guarded(tmp_path_factory.mktemp("mutual"), authority, mutual=True).start(launch)
    yield server
    server.service.stop()


async def stream_end(channel: grpc.aio.Channel, method: str, metadata: list[tuple[str, str]]) -> Ending:
    """How an RPC stream ends on which nothing is sent."""
    start: Any = channel.stream_stream(method, None, None)
    call = start(metadata=metadata, timeout=30)
    await call.done_writing()
    return await ending_of(call)


# -- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "code", "reason"),
    [
        ([], Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        (shows("nobody"), Code.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ([("authorization", token("engine"))], Code.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        (shows("old"), Code.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        (shows("panel"), Code.PERMISSION_DENIED, "ROLE_MISSING"),
    ],
    ids=["none", "wrong", "no scheme", "expired", "wrong role"],
)
async def test_call_that_is_not_let_in(
    guarded: Guarded, metadata: list[tuple[str, str]], code: Code, reason: str
) -> None:
    """Alone or as an RPC stream, with a good message or a bad one: nothing is read before the token."""
    async with guarded.channel() as channel:
        ends = [
            await unary(channel, window_request(), metadata=metadata),
            await unary(channel, b"\xff", metadata=metadata),
            await stream_end(channel, "/tickring.v1.InferenceService/PredictStream", metadata),
        ]
        silent = RpcStream(channel, metadata)  # it sends nothing, and does not half-close
        ends.append((await silent.rest())[1])
    for end in ends:
        assert (end.code, end.reason) == (code, reason)
        assert "secret_of" not in end.message


async def test_who_may_call_what(guarded: Guarded) -> None:
    """Health is open; what is served, and reflection, take any good token."""
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    async with guarded.channel() as channel:
        reflect: Any = channel.stream_stream(REFLECTION, None, None)
        assert (await unary(channel, b"", method=HEALTH)).code is Code.OK
        for name, code in (("engine", Code.OK), ("panel", Code.OK), ("nobody", Code.UNAUTHENTICATED)):
            assert (await unary(channel, b"", method=LIST_MODELS, metadata=shows(name))).code is code
            call = reflect(metadata=shows(name))
            if code is Code.OK:
                await call.write(listing)
                assert b"tickring.v1.InferenceService" in await call.read()
                call.cancel()
            else:  # without a message: a client of grpc.aio that is refused while it writes says INTERNAL
                assert (await ending_of(call)).code is code
        assert (await unary(channel, window_request(), metadata=shows("engine"))).code is Code.OK
        assert (await unary(channel, b"", method=LIST_MODELS)).code is Code.UNAUTHENTICATED
        unknown = await unary(
            channel, b"", method="/tickring.v1.InferenceService/None", metadata=shows("engine")
        )
        assert unknown.code is Code.UNIMPLEMENTED


async def test_who_may_call_what_of_kserve(guarded: Guarded) -> None:
    """Every method, by what an engine's token is told; an empty message is as good as any to find out."""
    (service,) = grpc_service_pb2.DESCRIPTOR.services_by_name.values()
    found: dict[str, set[str]] = {}
    async with guarded.channel() as channel:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            ends = [await unary(channel, b"", method=path, metadata=shown) for shown in ([], shows("engine"))]
            codes = [
                end.code.name for end in ends if end.code.name in ("UNAUTHENTICATED", "PERMISSION_DENIED")
            ]
            found.setdefault(" ".join(codes), set()).add(method.name)
            assert ends[1].code not in (Code.UNKNOWN, Code.UNAVAILABLE)
    assert found.pop("") == {"ServerLive", "ServerReady"}
    assert found.pop("UNAUTHENTICATED PERMISSION_DENIED") == {
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "TraceSetting",
        "LogSettings",
    }
    assert list(found) == ["UNAUTHENTICATED"]


async def test_client_with_token_and_tls(guarded: Guarded, authority: Authority) -> None:
    """Its errors are classes of their own; the stream that it shares is refused as a call is."""
    tls = TlsFiles(authority.cert)
    async with Client(guarded.service.target, tls=tls, token=token("engine")) as client:
        for call in (client.predict, client.predict_unary):
            assert (await call({"window": windows(1)}))["regression_mean"].shape == (1, 1)
    for shown, error in (
        (token("panel"), PermissionDenied),
        (token("old"), Unauthenticated),
        (None, Unauthenticated),
    ):
        async with Client(guarded.service.target, tls=tls, token=shown) as client:
            for call in (client.predict, client.predict_unary):
                with pytest.raises(error):
                    await call({"window": windows(1)})


def test_command_with_token_and_tls(guarded: Guarded, authority: Authority) -> None:
    """The token comes from the environment, so that it is in no list of processes."""
    for name, code in (("engine", 0), ("nobody", 1)):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "client.cli", "models", "--json"),
                *("--target", guarded.service.target, "--tls-ca", str(authority.cert)),
            ],
            env={"TICKRING_TOKEN": token(name), "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert (b"sp500_direction" in done.stdout) is (code == 0)
        assert (b"UNAUTHENTICATED" in done.stderr) is (code == 1)


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (None, Code.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        (("observe", ""), Code.PERMISSION_DENIED, "ROLE_MISSING"),
        (("predict", OLD), Code.UNAUTHENTICATED, "TOKEN_EXPIRED"),
    ],
    ids=["rotated", "loses its role", "expires"],
)
async def test_token_that_is_taken_back_while_streaming(
    guarded: Guarded, change: tuple[str, str] | None, code: Code, reason: str
) -> None:
    """The RPC stream ends though nothing is sent on it; that of another token goes on."""
    lines = len(guarded.service.logged())
    guarded.write_tokens(DEFAULT_TOKENS | {"leaving": ("predict", "")})
    guarded.service.wait_for(
        "tokens reloaded", process="frontend-0", after=lines, tokens=[*DEFAULT_TOKENS, "leaving"]
    )
    async with guarded.channel() as channel:
        streams = {name: RpcStream(channel, shows(name)) for name in ("leaving", "engine")}
        for stream in streams.values():
            await stream.send(streamed(1, window_request()))
            assert (await stream.answer())[1].code is Code.OK
        guarded.write_tokens(DEFAULT_TOKENS | ({"leaving": change} if change else {}))
        answers, end = await streams["leaving"].rest()
        assert (answers, end.code, end.reason) == ([], code, reason)
        await streams["engine"].send(streamed(2, window_request()))
        assert (await streams["engine"].answer())[1].code is Code.OK
        await streams["engine"].half_close()
        assert (await streams["engine"].rest())[1].code is Code.OK


async def test_token_that_expires_while_streaming(guarded: Guarded) -> None:
    """Of itself, without a change of the file."""
    end_at = datetime.now(UTC) + timedelta(seconds=6)
    guarded.write_tokens(DEFAULT_TOKENS | {"brief": ("predict", f"{end_at:%Y-%m-%dT%H:%M:%SZ}")})
    try:
        await asyncio.to_thread(
            guarded.service.wait_for,
            "tokens reloaded",
            process="frontend-0",
            tokens=[*DEFAULT_TOKENS, "brief"],
        )
        async with guarded.channel() as channel:
            stream = RpcStream(channel, shows("brief"))
            await stream.send(streamed(1, window_request()))
            assert (await stream.answer())[1].code is Code.OK
            _, end = await stream.rest()
        assert (end.code, end.reason) == (Code.UNAUTHENTICATED, "TOKEN_EXPIRED")
        assert datetime.now(UTC) >= end_at.replace(microsecond=0)
    finally:
        guarded.write_tokens(DEFAULT_TOKENS)


async def test_bad_file_of_tokens_shuts_nobody_out(guarded: Guarded) -> None:
    """Those of before stay good, and the log says what is wrong."""
    guarded.tokens_file.write_text("[tokens")
    try:
        guarded.service.wait_for("tokens not reloaded, the old ones stay", process="frontend-0")
        async with guarded.channel() as channel:
            assert (await unary(channel, window_request(), metadata=shows("engine"))).code is Code.OK
            assert (
                await unary(channel, window_request(), metadata=shows("nobody"))
            ).code is Code.UNAUTHENTICATED
    finally:
        guarded.write_tokens(DEFAULT_TOKENS)


# -- TLS ------------------------------------------------------------------------------------------


async def refused(channel: grpc.aio.Channel) -> bool:
    """Whether the connection does not come about: with TLS that fails, gRPC says UNAVAILABLE."""
    async with channel:
        end = await unary(channel, b"", method=HEALTH)
    assert end.code in (Code.OK, Code.UNAVAILABLE), end
    return end.code is Code.UNAVAILABLE


async def test_client_that_does_not_trust_the_server(guarded: Guarded, stranger: Authority) -> None:
    """Wrong authority, another host's name, and no TLS at all."""
    port = guarded.service.target.rpartition(":")[2]
    assert not await refused(guarded.channel())
    assert await refused(guarded.channel(ca=stranger.cert))
    assert await refused(guarded.channel(target=f"localhost:{port}"))  # the certificate is for 127.0.0.1
    assert await refused(grpc.aio.insecure_channel(guarded.service.target))
    async with Client(guarded.service.target, tls=TlsFiles(stranger.cert)) as client:
        with pytest.raises(Unavailable):
            await client.health()


async def test_client_that_the_server_does_not_trust(
    mutual: Guarded, authority: Authority, stranger: Authority
) -> None:
    """No certificate, a stranger's, an old one: none gets as far as a call, not even of health."""
    good = authority.sign("client")
    assert not await refused(mutual.channel(pair=good))
    assert await refused(mutual.channel())
    assert await refused(mutual.channel(pair=stranger.sign("client")))
    assert await refused(mutual.channel(pair=authority.sign("gone", from_days=-3, to_days=-1)))
    async with mutual.channel(pair=good) as channel:
        assert (await unary(channel, window_request(), metadata=shows("engine"))).code is Code.OK
        assert (await unary(channel, window_request())).code is Code.UNAUTHENTICATED


async def test_certificate_changes_while_streaming(
    guarded: Guarded, authority: Authority, stranger: Authority
) -> None:
    """New connections get the new one, old connections go on; between the two files the old pair stays."""
    async with guarded.channel() as channel:
        stream = RpcStream(channel, shows("engine"))
        await stream.send(streamed(1, window_request()))
        assert (await stream.answer())[1].code is Code.OK

        new = stranger.sign("server")
        new.cert.replace(guarded.pair.cert)
        guarded.service.wait_for("certificate not reloaded, the old one stays", process="frontend-0")
        assert not await refused(guarded.channel())
        new.key.replace(guarded.pair.key)
        guarded.service.wait_for("certificate reloaded", process="frontend-0")
        assert await refused(guarded.channel())
        assert not await refused(guarded.channel(ca=stranger.cert))

        await stream.send(streamed(2, window_request()))
        assert (await stream.answer())[1].code is Code.OK
        await stream.half_close()
        assert (await stream.rest())[1].code is Code.OK
    reloads = len(guarded.service.logged())
    authority.sign("server").move_to(guarded.pair)
    guarded.service.wait_for("certificate reloaded", process="frontend-0", after=reloads)
    assert not await refused(guarded.channel())


async def test_connection_that_never_begins_its_handshake(guarded: Guarded) -> None:
    """Is hung up on, long before gRPC would do so by itself."""
    host, _, port = guarded.service.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    writer.close()


def test_probes_are_in_clear_text(mutual: Guarded) -> None:
    """A kubelet has no certificate."""
    status: str = mutual.service.wait_for("ready")["status"]
    with urllib.request.urlopen(status.replace("/status", "/readyz"), timeout=30) as answer:
        assert answer.status == 200


# -- start ----------------------------------------------------------------------------------------


def test_server_does_not_start_with_a_bad_certificate(authority: Authority, short_path: Path) -> None:
    """One line that says which file, and what is wrong; exit code 2."""
    pair, other = authority.sign("one"), authority.sign("two")
    old = authority.sign("old", from_days=-3, to_days=-1)
    none = short_path / "none.pem"
    for cert, key, line in (
        (none, pair.key, f"tls.cert = {none}: must be a readable file: No such file or directory"),
        (pair.cert, other.key, f"tls.key = {other.key}: must be the key of tls.cert"),
        (old.cert, old.key, f"tls.cert = {old.cert}: has expired"),
    ):
        done = run_server((), {"TICKRING_TLS__CERT": str(cert), "TICKRING_TLS__KEY": str(key)})
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")


def test_server_does_not_send_tokens_over_a_network_in_clear_text(tmp_path: Path) -> None:
    """Nor does the command."""
    file = tmp_path / "tokens.toml"
    file.write_text(f'[tokens.a]\nroles = ["admin"]\nsha256 = "{64 * "0"}"\n')
    done = run_server(("--host", "0.0.0.0", "--check-config"), {"TICKRING_AUTH__TOKENS_FILE": str(file)})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("auth.allow_clear_text = false: must be true, or tls.cert set")
