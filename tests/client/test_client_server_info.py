"""Models, health, readiness, TLS and tokens."""

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client import Client, DeadlineExceeded, NotFound, TlsFiles, Unavailable

if TYPE_CHECKING:
    from tests.client.conftest import Standin, Start


async def test_models_are_described(client: Client) -> None:
    """Names, versions, dtypes and per-item shapes come as plain values."""
    echo, pair = await client.models()
    assert (echo.name, echo.is_default, echo.max_rows) == ("echo", True, 64)
    assert [(version.version, version.state) for version in echo.versions] == [
        ("6", "AVAILABLE"),
        ("7", "READY"),
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in pair.inputs] == [
        ("a", np.dtype(np.int64), (2,)),
        ("b", np.dtype(np.bool_), (1,)),
    ]
    assert await client.model() == echo
    assert await client.model("pair") == pair


async def test_a_missing_model_is_not_found(client: Client) -> None:
    """With the reason that the server gave."""
    with pytest.raises(NotFound, match="echo, pair") as raised:
        await client.model("missing")
    assert raised.value.reason == "MODEL_NOT_FOUND"


async def test_health_is_told_by_name(client: Client) -> None:
    """Overall, of one service, and of none that exists."""
    assert await client.health() == "SERVING"
    assert await client.health("starting") == "NOT_SERVING"
    with pytest.raises(NotFound):
        await client.health("nobody")


async def test_wait_ready_outlasts_a_server_that_starts(start_standin: "Start") -> None:
    """It returns after the server says SERVING, not at its first answer."""
    starting = start_standin("--not-serving", "2")
    async with Client(starting.target) as client:
        await client.wait_ready(10)
        assert await client.health() == "SERVING"


async def test_wait_ready_gives_up_in_time(start_standin: "Start") -> None:
    """Then it says what it saw last."""
    never = start_standin("--not-serving", "1000000")
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with Client(never.target) as client:
        with pytest.raises(DeadlineExceeded, match=r"not ready after 0\.3 s; last seen: NOT_SERVING"):
            await client.wait_ready(0.3)
    assert loop.time() - started < 2


async def test_wait_ready_names_a_missing_server() -> None:
    """Nobody listens on port 1."""
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(DeadlineExceeded, match="last seen: UNAVAILABLE"):
            await client.wait_ready(0.2)


@pytest.mark.parametrize(("token", "sent"), [(None, b""), ("s3cret", b"Bearer s3cret")])
@pytest.mark.parametrize("method", ["predict", "predict_unary"])
async def test_the_token_goes_with_every_rpc(
    standin: "Standin", method: str, token: str | None, sent: bytes
) -> None:
    """As a bearer token, and nothing where there is none."""
    async with Client(standin.target, token=token) as client:
        prediction = await getattr(client, method)({}, model="metadata")
    assert prediction["authorization"].tobytes() == sent + b"\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem, signed by itself for 127.0.0.1, and its key.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-subj", "/CN=tickring test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


async def test_mutual_tls(start_standin: "Start", certificate: Path) -> None:
    """A client with the right files is served; one without its own certificate is not."""
    server = start_standin("--tls", str(certificate))
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    async with Client(server.target, tls=TlsFiles(cert, cert, key)) as client:
        assert (await client.predict({}, model="echo")).model_name == "echo"
    async with Client(server.target, tls=TlsFiles(cert)) as client:
        with pytest.raises(Unavailable):
            await client.health()


def test_a_certificate_needs_its_key() -> None:
    """Half a pair is refused where it is written."""
    with pytest.raises(ValueError, match="both cert and key"):
        TlsFiles(cert=Path("cert.pem"))


async def test_a_missing_tls_file_is_named() -> None:
    """The constructor reads nothing; the first call says which file is missing."""
    async with Client("127.0.0.1:1", tls=TlsFiles(Path("nowhere.pem"))) as client:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
            await client.health()
