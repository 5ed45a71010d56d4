"""What the service will not start with, and what it only warns of."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from server.configuration import load_settings
from server.problems import SettingsError
from server.security import check_security, warn_of_security
from server.settings import Settings
from tests.certificates import Authority

CLEAR = "auth.allow_clear_text = false: must be true, or tls.cert set: tokens would cross the network"
EVERYBODY = "everybody who reaches this host may call"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """A good one."""
    path = tmp_path / "tokens.toml"
    path.write_text(f'[tokens.a]\nroles = ["admin"]\nsha256 = "{hashlib.sha256(b"t").hexdigest()}"\n')
    return path


def settings(host: str = "127.0.0.1", **tables: Any) -> Settings:
    """Of a server on this host."""
    return load_settings({"server": {"host": host}, **tables}, environ={})


def problems(checked: Settings) -> list[str]:
    """What it would not start with."""
    try:
        check_security(checked)
    except SettingsError as error:
        return str(error).splitlines()
    return []


def warnings(checked: Settings) -> list[str]:
    """What it warns of, once it starts."""
    with capture_logs() as logs:
        warn_of_security(checked)
    assert {line["log_level"] for line in logs} <= {"warning"}
    return [line["event"] for line in logs]


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("tickring.example", False),
    ],
)
def test_tokens_do_not_cross_a_network_in_clear_text(host: str, here: bool, tokens_file: Path) -> None:
    """Unless the operator says that they may; then the log says so too."""
    auth: dict[str, Any] = {"tokens_file": str(tokens_file)}
    found = problems(settings(host, auth=auth))
    assert found == ([] if here else [f"{CLEAR} in clear text to {host}"])
    allowed = settings(host, auth=auth | {"allow_clear_text": True})
    assert problems(allowed) == []
    assert warnings(allowed) == ([] if here else ["tokens cross the network in clear text"])


def test_server_that_is_open_to_the_network_says_so(tokens_file: Path, tmp_path: Path) -> None:
    """It starts: there are networks where everybody may."""
    assert warnings(settings("0.0.0.0")) == [EVERYBODY]
    assert warnings(settings()) == []
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server")
    tls = {"cert": str(pair.cert), "key": str(pair.key)}
    assert warnings(settings("0.0.0.0", tls=tls)) == [EVERYBODY]
    assert warnings(settings("0.0.0.0", tls=tls | {"client_ca": str(authority.cert)})) == []
    with_tokens = settings("0.0.0.0", tls=tls, auth={"tokens_file": str(tokens_file)})
    assert (problems(with_tokens), warnings(with_tokens)) == ([], [])


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Certificate, tokens, and where they are used."""
    none = str(tmp_path / "none")
    found = problems(settings(tls={"cert": none, "key": none}, auth={"tokens_file": none}))
    assert [line.partition(" ")[0] for line in found] == ["tls.cert", "auth.tokens_file"]
    found = problems(settings("0.0.0.0", auth={"tokens_file": none}))
    assert [line.partition(" ")[0] for line in found] == ["auth.tokens_file", "auth.allow_clear_text"]
