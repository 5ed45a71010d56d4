"""The commands of `tickring admin`: what they print, and how they exit."""

import json
from typing import TYPE_CHECKING, Any

import pytest

from client import cli, cli_admin_output
from client.admin_info import (
    BucketLatency,
    EngineModelStatus,
    EngineStatus,
    FrontendStatus,
    ServerStatus,
    SettingInfo,
)

if TYPE_CHECKING:
    from tests.client.conftest import Standin, Start

NOBODY = "127.0.0.1:1"
LEVEL = "telemetry.log_level"
COMMANDS = ["settings", "set", "load", "unload", "status", "drain"]


@pytest.fixture(autouse=True)
def _target(admin_port: "Standin", monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds the admin port by itself, and by no other variable."""
    monkeypatch.setenv("TICKRING_ADMIN_TARGET", admin_port.target)
    monkeypatch.setenv("TICKRING_TARGET", NOBODY)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that is right."""
    assert cli.run(["admin", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The same as JSON, on one line."""
    out = printed(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    return json.loads(out)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tickring: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        ([], 6),
        (["scheduler"], 2),
        (["profile", "scheduler.max_batch_size"], 2),
        (["scheduler", "scheduler.max_batch_size"], 2),
    ],
)
def test_settings_are_shown(capsys: pytest.CaptureFixture[str], paths: list[str], shown: int) -> None:
    """All, a table of them, or single ones, each once."""
    heading, *lines = printed(capsys, "settings", *paths).splitlines()
    assert heading.split() == ["path", "value", "origin"]
    assert len(lines) == shown
    found = answered(capsys, "settings", *paths)
    assert [line.split()[0] for line in lines] == [setting["path"] for setting in found["settings"]]
    assert set(found) == {"version", "profile", "settings"}


def test_setting_is_shown_with_value_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    """For people on a line, for programs by names."""
    _, line = printed(capsys, "settings", "scheduler.max_batch_size").splitlines()
    assert line.split() == ["scheduler.max_batch_size", "64", "profile", "market_hours"]
    (setting,) = answered(capsys, "settings", "scheduler.max_batch_size")["settings"]
    assert setting == {
        "path": "scheduler.max_batch_size",
        "value": "64",
        "origin": "profile market_hours",
        "effect": "ENGINES",
    }


def test_settings_stay_on_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut or folded, whatever the window; only what is very long stands out of its column."""
    path, long = "scheduler.classes.market_data_update.default_timeout_ms", "x" * 200
    cli_admin_output.print_settings(
        [SettingInfo(path, "200.0", "default", "LIVE"), SettingInfo("a", f"{long} \n y", "file", "LIVE")]
    )
    heading, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [path, "200.0", "default"]
    assert second.split() == ["a", long, "y", "file"]
    assert [line.index(word) for line, word in ((heading, "value"), (first, "200.0"), (second, "x"))] == [
        len(path) + 2
    ] * 3


def test_settings_are_set_and_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    """A value may have any sign in it, or none at all; a check changes nothing."""
    version = answered(capsys, "settings")["version"]
    checked = printed(capsys, "set", f"{LEVEL}=debug", "--check")
    assert checked == f"version {version}, would change: {LEVEL}\n"
    model = "models.default_model"
    arguments = [f"{LEVEL}=debug", f"{model}=a=b c", "--expect-version", str(version)]
    assert answered(capsys, "set", *arguments) == {"version": version + 1, "changed_paths": [LEVEL, model]}
    values = {setting["path"]: setting["value"] for setting in answered(capsys, "settings")["settings"]}
    assert (values[LEVEL], values[model]) == ("debug", "a=b c")
    done = printed(capsys, "set", f"{model}=", "--unset", LEVEL)
    assert done == f"version {version + 2}, changed: {model}, {LEVEL}\n"
    (level,) = answered(capsys, "settings", LEVEL)["settings"]
    assert (level["value"], level["origin"]) == ("info", "environment")
    assert printed(capsys, "set", "--unset", LEVEL) == f"version {version + 2}, changed: nothing\n"


def test_models_are_loaded_and_unloaded(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for people, everything for programs."""
    said = printed(capsys, "load", "pair", "--version", "1")
    assert said == "pair: version 1 READY, version 2 AVAILABLE, version 3 READY\n"
    assert answered(capsys, "load", "pair")["versions"][2]["state"] == "READY"
    assert printed(capsys, "unload", "pair", "--version", "1") == "unloaded pair version 1\n"
    printed(capsys, "load", "pair", "--version", "2")
    assert answered(capsys, "unload", "pair", "--version", "2") == {"unloaded": "pair", "version": "2"}


def test_status_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Every process and every model; a program gets all of the fields."""
    out = printed(capsys, "status")
    assert out.startswith("up ")
    assert all(
        word in out for word in ("settings version", "frontend-0", "engine-0", "cpu", "pair", "version 3")
    )
    found = answered(capsys, "status")
    assert found["frontends"][0]["ended"]["lost"] == 0
    assert found["engines"][0]["models"][0]["queued"]["real_time_trading"] == 0


def test_status_tells_numbers_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Ends and queues by their names, those that are not zero; times in milliseconds."""
    ended = {"result": 7, "error": 0, "lost": 2}
    queued = {"real_time_trading": 0, "background_tasks": 9}
    latency = (BucketLatency(1, 1_500_000, 2_000_000), BucketLatency(8, 2_500_000, 4_000_000))
    model = EngineModelStatus("momentum", "12", queued, 8, 1_000, latency)
    status = ServerStatus(
        90_061_000_000_000,
        4,
        (FrontendStatus("frontend-0", 0, 9, ended, 0, 0, 0, 16),),
        (EngineStatus("engine-0", "cuda:1", False, 3, {}, 9, 9, 0, 0, 8, 5, 9, (model,)),),
    )
    cli_admin_output.print_status(status)
    out = capsys.readouterr().out
    assert out.startswith("up 1 d 1 h, settings version 4\n")
    for text in ("7 result", "2 lost", "9 background_tasks", "not ready", "1: 1.500 2.000", "8: 2.500 4.000"):
        assert text in out
    assert "error" not in out
    assert out.endswith("\nengine-0 has found 5 corrupt entries: a bug, please report it\n")
    assert "frontend-0 has" not in out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (86399, "23 h 59 min")],
)
def test_uptime_is_told_in_two_units(capsys: pytest.CaptureFixture[str], seconds: int, said: str) -> None:
    """The largest that it has, and the next."""
    cli_admin_output.print_status(ServerStatus(seconds * 10**9 + 5, 1, (), ()))
    assert capsys.readouterr().out.splitlines()[0] == f"up {said}, settings version 1"


def test_drain_ends_the_server(capsys: pytest.CaptureFixture[str], start_admin: "Start") -> None:
    """And says that it has begun to."""
    for extra, said in (((), "draining\n"), (("--json",), '{"draining": true}\n')):
        server = start_admin()
        assert printed(capsys, "drain", "--target", server.target, *extra) == said
        assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "--target", NOBODY], "UNAVAILABLE: "),
        (["load", "none"], "NOT_FOUND: no model 'none'"),
        (["load", "broken"], "FAILED_PRECONDITION: broken version 3"),
        (["load", "slow", "--timeout", "0.2"], "DEADLINE_EXCEEDED: "),
        (["load", "pair", "--version", "x"], "INVALID_ARGUMENT: model_version: is x"),
        (["unload", "pair"], "FAILED_PRECONDITION: pair is the last"),
        (["set", "bogus=1"], "INVALID_ARGUMENT: bogus = 1: is no setting"),
        (["set", "server.admin_port=1"], "FAILED_PRECONDITION: server.admin_port: a change takes a restart"),
        (["set", f"{LEVEL}=debug", "--expect-version", "99"], "ABORTED: the settings are of version"),
    ],
)
def test_a_refused_command_exits_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """With one line that begins with the status."""
    assert cli.run(["admin", *arguments]) == 1
    assert complaint(capsys).startswith(f"tickring: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["bogus"], "No such command 'bogus'"),
        (["load"], "Missing argument 'NAME'"),
        (
            ["settings", "schedule"],
            "no setting 'schedule'; it has profile, server, models, scheduler, telemetry",
        ),
        (["set"], "PATH=VALUE"),
        (["set", "a"], "'a' is not allowed; PATH=VALUE"),
        (["set", "=a"], "'=a' is not allowed; PATH=VALUE"),
        (["set", "a=1", "a=2"], "'a' is given twice"),
        (["set", "a=1", "--unset", "a"], "'a' is given twice"),
        (["set", "a=1", "--expect-version", "0"], "Invalid value for '--expect-version'"),
        (["load", "pair", "--timeout", "0"], "over 0"),
        (["status", "--target", "tickring.invalid:1", "--token", "t"], "--allow-clear-text"),
    ],
)
def test_misuse_exits_2(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """With one line that says what is wrong, or what is allowed."""
    assert cli.run(["admin", *arguments]) == 2
    assert said in complaint(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every command explains itself and the options they share."""
    out = printed(capsys, command, "--help")
    assert f"Example: tickring admin {command}" in out
    for option in (
        "--target",
        "--tls-ca",
        "--tls-cert",
        "--tls-key",
        "--token",
        "--json",
        "TICKRING_ADMIN_TARGET",
    ):
        assert option in out


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, in one place."""
    out = printed(capsys, "--help")
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == COMMANDS
