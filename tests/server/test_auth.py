"""Roles, tokens, and the file of tokens."""

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from client.new_token import NewRole, new_token
from server import auth
from server.auth import PermissionDenied, Role, Tokens, Unauthenticated, allowed, read_tokens
from server.problems import SettingsError
from server.status import code_of, to_status
from tickring.v1 import inference_pb2, model_pb2

PREDICT = "/tickring.v1.InferenceService/Predict"
HEALTH = "/grpc.health.v1.Health/Check"
STATUS = "/tickring.v1.AdminService/GetStatus"
DRAIN = "/tickring.v1.AdminService/Drain"
MODELS = "/tickring.v1.ModelService/ListModels"

Write = Callable[..., Path]


def digest(token: str) -> str:
    """As the file holds it."""
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file, in one step: name to (token, roles, further lines)."""

    def write(**tokens: tuple[str, list[str], str]) -> Path:
        text = "".join(
            f'[tokens.{name}]\nroles = {roles}\nsha256 = "{digest(token)}"\n{more}\n'
            for name, (token, roles, more) in tokens.items()
        )
        path = tmp_path / "tokens.toml"
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(path)
        return path

    return write


def shows(token: str, scheme: str = "Bearer") -> list[tuple[str, str]]:
    """The metadata of a call."""
    return [("user-agent", "test"), ("authorization", f"{scheme} {token}")]


def reason(tokens: Tokens, method: str, metadata: Any) -> str:
    """Why a call is refused; empty: it is not."""
    try:
        tokens.check(method, metadata)
    except (Unauthenticated, PermissionDenied) as error:
        return error.reason
    return ""


@pytest.mark.parametrize(
    ("roles", "may"),
    [
        (["predict"], {PREDICT, MODELS, HEALTH}),
        (["observe"], {STATUS, MODELS, HEALTH}),
        (["admin"], {STATUS, DRAIN, MODELS, HEALTH}),
        (["observe", "predict"], {PREDICT, STATUS, MODELS, HEALTH}),
    ],
)
def test_roles(write: Write, roles: list[str], may: set[str]) -> None:
    """An administrator has no business with predictions, a trading engine none with a drain."""
    tokens = Tokens(write(me=("secret", roles, "")))
    found = {
        method: reason(tokens, method, shows("secret")) for method in (PREDICT, MODELS, HEALTH, STATUS, DRAIN)
    }
    assert {method for method, why in found.items() if not why} == may
    assert {why for why in found.values() if why} == {"ROLE_MISSING"}


def test_method_that_nobody_thought_of_is_for_administrators() -> None:
    """Also one whose service is known."""
    for method in (
        "/tickring.v1.AdminService/New",
        "/a.b/C",
        "/",
        "",
        "/tickring.v1.InferenceServiceX/Predict",
    ):
        assert allowed(method) == frozenset({Role.ADMIN})


def test_every_method_of_ours_has_the_roles_it_is_meant_to_have() -> None:
    """By the protos, so that a new RPC is thought of."""
    found = {
        method.name: allowed(f"/{service.full_name}/{method.name}")
        for file in (inference_pb2, model_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert found == {
        "Predict": frozenset({Role.PREDICT}),
        "PredictStream": frozenset({Role.PREDICT}),
        "ListModels": frozenset(Role),
        "GetModel": frozenset(Role),
    }


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ([], "TOKEN_MISSING"),
        ([("authorizations", "Bearer secret")], "TOKEN_MISSING"),
        (shows("secret"), ""),
        (shows("secret", "bEARER"), ""),
        (shows("Secret"), "TOKEN_UNKNOWN"),
        (shows("secret "), "TOKEN_UNKNOWN"),
        (shows(" secret"), "TOKEN_UNKNOWN"),
        (shows(""), "TOKEN_UNKNOWN"),
        (shows(digest("secret")), "TOKEN_UNKNOWN"),
        (shows("secret", "Basic"), "TOKEN_UNKNOWN"),
        ([("authorization", "secret")], "TOKEN_UNKNOWN"),
        ([("authorization", "Bearer wrong"), ("authorization", "Bearer secret")], "TOKEN_UNKNOWN"),
        ([("authorization", "Bearer \udcff")], "TOKEN_UNKNOWN"),
    ],
)
def test_what_a_call_may_show(write: Write, metadata: list[tuple[str, str]], why: str) -> None:
    """Twice: what was recognised once is not looked at so closely again."""
    tokens = Tokens(write(me=("secret", ["predict"], "")))
    assert [reason(tokens, PREDICT, metadata) for _ in range(2)] == [why] * 2


def test_no_refusal_repeats_what_was_shown(write: Write) -> None:
    """It would end in the caller's log, and in ours."""
    tokens = Tokens(write(me=("tr_verysecret", ["predict"], "expires = 1970-01-01T00:00:00Z")))
    for token in ("tr_verysecret", "tr_verysecret2"):
        with pytest.raises(Unauthenticated) as raised:
            tokens.check(PREDICT, shows(token))
        assert "secret" not in str(raised.value)


def test_statuses_say_why() -> None:
    """As the protos promise."""
    for kind, name in ((Unauthenticated, "UNAUTHENTICATED"), (PermissionDenied, "PERMISSION_DENIED")):
        error = kind("no", reason="R")
        assert code_of(error).name == name
        (detail,) = to_status(error).details
        assert b"R" in detail.value
        assert b"tickring" in detail.value


def test_every_token_is_compared_whether_one_fits_or_not(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time says neither which token is nearly right nor where in the file it is; then none is needed."""
    compared = []
    plain = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(first)
        return plain(first, second)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    tokens = Tokens(write(**{f"n{index}": (f"t{index}", ["predict"], "") for index in range(5)}))
    for token, comparisons in (("t0", 5), ("t4", 5), ("none", 5), ("none", 5), ("t0", 0)):
        compared.clear()
        reason(tokens, PREDICT, shows(token))
        assert len(compared) == comparisons


def test_token_expires_while_it_is_used(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the second, also after it was recognised; times without a zone are UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    now_s = [0.0]
    path = write(
        me=("t", ["predict"], "expires = 1970-01-01T00:01:40Z"),
        you=("u", ["predict"], "expires = 1970-01-01 00:01:40"),
    )
    tokens = Tokens(path, lambda: now_s[0])
    caller = tokens.caller(shows("t"))
    for now_s[0], why in ((0.0, ""), (99.9, ""), (100.0, "TOKEN_EXPIRED")):
        assert reason(tokens, PREDICT, shows("t")) == reason(tokens, PREDICT, shows("u")) == why
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.recheck(PREDICT, caller)
    monkeypatch.undo()
    time.tzset()


def test_changed_file_is_taken_up(write: Write) -> None:
    """One token goes, one comes, one changes its role."""
    tokens = Tokens(write(gone=("g", ["predict"], ""), kept=("k", ["predict"], "")))
    callers = [tokens.caller(shows(token)) for token in "gk"]
    assert not tokens.refresh()
    write(kept=("k", ["observe"], ""), new=("n", ["predict"], ""))
    with capture_logs() as logs:
        assert tokens.refresh()
    assert logs == [{"event": "tokens reloaded", "tokens": ["kept", "new"], "log_level": "info"}]
    assert [reason(tokens, PREDICT, shows(token)) for token in "gkn"] == ["TOKEN_UNKNOWN", "ROLE_MISSING", ""]
    with pytest.raises(Unauthenticated, match="gone has been revoked"):
        tokens.recheck(PREDICT, callers[0])
    with pytest.raises(PermissionDenied):
        tokens.recheck(PREDICT, callers[1])
    tokens.recheck(MODELS, callers[1])


@pytest.mark.parametrize("content", [None, "", "[tokens", "[tokens.me]"])
def test_bad_file_changes_nothing_and_is_told_once(write: Write, content: str | None) -> None:
    """The tokens of before stay good until the file is."""
    path = write(me=("t", ["predict"], ""))
    tokens = Tokens(path)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with capture_logs() as logs:
        assert not tokens.refresh()
        assert not tokens.refresh()
    assert [line["log_level"] for line in logs] == ["error"]
    assert reason(tokens, PREDICT, shows("t")) == ""
    write(you=("u", ["predict"], ""))
    assert tokens.refresh()
    assert reason(tokens, PREDICT, shows("t")) == "TOKEN_UNKNOWN"


GOOD = f'sha256 = "{digest("t")}"'
ROLES = "tokens.a.roles must be a list of predict, observe, admin"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have a table [tokens.<name>]"),
        ("x = 1", "must have nothing but tables [tokens.<name>]"),
        ("tokens = 1", "must have nothing but tables [tokens.<name>]"),
        ("x", "must be TOML"),
        ("[tokens]\na = 1", ROLES),
        (f"[tokens.a]\n{GOOD}", ROLES),
        (f"[tokens.a]\nroles = []\n{GOOD}", ROLES),
        (f"[tokens.a]\nroles = ['root']\n{GOOD}", ROLES),
        (f"[tokens.a]\nroles = [['admin']]\n{GOOD}", ROLES),
        (f"[tokens.a]\nroles = 'admin'\n{GOOD}", ROLES),
        ("[tokens.a]\nroles = ['admin']", "tokens.a.sha256 must be 64 hexadecimal digits in lower case"),
        (
            "[tokens.a]\nroles = ['admin']\nsha256 = 'tr_verysecret'",
            "tokens.a.sha256 must be 64 hexadecimal digits in lower case",
        ),
        (
            f"[tokens.a]\nroles = ['admin']\nexpires = 5\n{GOOD}",
            "tokens.a.expires must be a date and time, such as 2030-01-01T00:00:00Z",
        ),
        (
            f"[tokens.a]\nroles = ['admin']\nexpire = 5\n{GOOD}",
            "tokens.a must have roles, sha256 and perhaps expires, not expire",
        ),
        (
            f"[tokens.'a b']\nroles = ['admin']\n{GOOD}",
            "names of tokens must be letters, digits, '.', '_' and '-', up to 64",
        ),
        (
            f"[tokens.a]\nroles = ['admin']\n{GOOD}\n[tokens.b]\nroles = ['predict']\n{GOOD}",
            "must have every sha256 once",
        ),
    ],
)
def test_mistake_in_the_file_is_one_line(short_path: Path, text: str, said: str) -> None:
    """Which never repeats a value: somebody may have written a token itself into the file."""
    path = short_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        read_tokens(path)
    assert str(raised.value) == f"auth.tokens_file = {path}: {said}"


def test_file_is_bounded(tmp_path: Path) -> None:
    """A call with an unknown token is compared with all of them."""
    path = tmp_path / "tokens.toml"

    def write(count: int) -> None:
        path.write_text(
            "".join(f'[tokens.n{i}]\nroles = ["admin"]\nsha256 = "{i:064x}"\n' for i in range(count))
        )

    write(256)
    assert len(read_tokens(path)) == 256
    write(257)
    with pytest.raises(SettingsError, match="at most 256"):
        read_tokens(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SettingsError, match="at most 1048576 bytes"):
        read_tokens(path)


@pytest.mark.parametrize("days", [None, 2.0])
def test_token_that_the_command_makes_is_taken(tmp_path: Path, days: float | None) -> None:
    """Until its end; each one is another, and the file does not hold it."""
    path = tmp_path / "tokens.toml"
    made = [new_token(name, [NewRole.PREDICT], days, now_s=1000.0) for name in ("a.b", "c")]
    path.write_text("".join(one.entry for one in made))
    now_s = [1000.0]
    tokens = Tokens(path, lambda: now_s[0])
    assert [tokens.caller(shows(one.token)).name for one in made] == ["a.b", "c"]
    assert not any(one.token in path.read_text() for one in made)
    now_s[0] += 2 * 86_400
    assert reason(tokens, PREDICT, shows(made[0].token)) == ("TOKEN_EXPIRED" if days else "")


def test_roles_of_the_command_are_those_of_the_server() -> None:
    """Neither side may import the other."""
    assert [*map(str, NewRole)] == [*map(str, Role)]


@pytest.mark.parametrize(("mode", "lines"), [(0o646, 1), (0o644, 0)])
def test_file_that_everybody_may_write(write: Write, mode: int, lines: int) -> None:
    """Anybody could let himself in; reading it helps nobody."""
    path = write(me=("t", ["predict"], ""))
    os.chmod(path, mode)
    with capture_logs() as logs:
        auth.warn_of_tokens(path)
    assert len(logs) == lines
