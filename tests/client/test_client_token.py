"""Where a token may go, and how one is made."""

import hashlib
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client import Client, TlsFiles, cli
from client.channel import stays_here
from client.new_token import NewRole, new_token


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:8001", True),
        ("127.0.0.2", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("::1", True),
        ("dns:localhost:8001", True),
        ("dns:///localhost:8001", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:1", True),
        ("unix:/run/tickring.sock", True),
        ("unix-abstract:tickring", True),
        ("10.0.0.1:8001", False),
        ("0.0.0.0:8001", False),
        ("[fe80::1]:8001", False),
        ("tickring:8001", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("dns:///tickring:8001", False),
        ("dns://10.0.0.1/localhost:8001", False),  # another machine says where that is
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("xds:///localhost", False),
        ("", False),
    ],
)
def test_a_token_stays_on_this_machine_or_goes_by_tls(target: str, here: bool) -> None:
    """Unless the caller says that the network can be trusted."""
    assert stays_here(target) is here
    Client(target)
    Client(target, token="t", tls=TlsFiles())
    Client(target, token="t", allow_clear_text=True)
    if here:
        Client(target, token="t")
    else:
        with pytest.raises(ValueError, match="clear text") as raised:
            Client(target, token="secret")
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("shown", ["option", "environment"])
def test_the_command_does_not_send_it_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """One line that names the way out; nothing is connected."""
    arguments = ["health", "--target", "tickring.invalid:1"]
    if shown == "option":
        arguments += ["--token", "tr_secret"]
    else:
        monkeypatch.setenv("TICKRING_TOKEN", "tr_secret")
    assert cli.run(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--allow-clear-text" in said
    assert "secret" not in said
    assert cli.run([*arguments, "--allow-clear-text"]) == 1  # it tries to connect


def test_the_command_makes_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """The token on standard error and its table on standard output, each alone; every one is another."""
    assert cli.run(["token", "engine.1", "--role", "predict", "--role", "observe", "--role", "predict"]) == 0
    assert cli.run(["token", "panel", "--role", "observe", "--expires-days", "1.5"]) == 0
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first != second
    tables = tomllib.loads(out)["tokens"]
    assert tables["engine.1"] == {
        "roles": ["predict", "observe"],
        "sha256": hashlib.sha256(first.encode()).hexdigest(),
    }
    assert tables["panel"]["sha256"] == hashlib.sha256(second.encode()).hexdigest()
    assert tables["panel"]["expires"] > datetime.now(UTC)


def test_a_token_is_long_enough_and_says_when_it_ends() -> None:
    """32 random bytes; the end is to the second, in UTC."""
    made = new_token("a", [NewRole.ADMIN], 1.5, now_s=0.0)
    assert len(made.token) == len("tr_") + 43
    assert "expires = 1970-01-02T12:00:00Z\n" in made.entry


@pytest.mark.parametrize("arguments", [["a b", "--role", "predict"], ["a", "--role", "root"], ["a"]])
def test_a_token_that_no_server_would_take(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Is not made."""
    assert cli.run(["token", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "tr_" not in err


def test_the_token_can_be_appended_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the documents do."""
    for name in ("a", "b"):
        assert cli.run(["token", name, "--role", "admin"]) == 0
    file = tmp_path / "tokens.toml"
    file.write_text(capsys.readouterr().out)
    assert set(tomllib.loads(file.read_text())["tokens"]) == {"a", "b"}
