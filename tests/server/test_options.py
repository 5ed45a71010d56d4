"""The command line of the server, and what it does to the settings."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from server import options
from server.configuration import load_settings
from server.layers import AUTO, PROFILES


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("TICKRING_")}
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_flag_sets_its_setting() -> None:
    """And nothing else."""
    line = (
        "--config c.toml --profile off_hours --models m --host h --grpc-port 1 --http-port 2 --admin-port 3 "
        "--frontends 4 --device cuda:0"
    )
    ports = {"grpc_port": "1", "http_port": "2", "admin_port": "3"}
    parsed = options.parse(line.split())
    assert parsed == options.Options(
        overrides={
            "server": {"host": "h", "frontends": "4"} | ports,
            "models": {"repository": "m"},
            "executor": {"device": "cuda:0"},
        },
        config=Path("c.toml"),
        profile="off_hours",
        check_config=False,
        print_config=False,
    )
    assert load_settings(parsed.overrides, environ={}).executor.device == "cuda:0"


def test_no_flag_sets_nothing() -> None:
    """So that the layers below are seen."""
    assert options.parse([]) == options.Options({}, None, None, False, False)


def test_help_names_every_flag_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    """With an example and the exit codes."""
    with pytest.raises(SystemExit) as raised:
        options.parse(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    flags = (
        "config profile models host grpc-port http-port admin-port frontends device check-config print-config"
    )
    for profile in (*PROFILES, AUTO):
        assert profile in text
    assert [flag for flag in flags.split() if f"--{flag}" not in text] == []
    assert "Example: tickring-server" in text
    assert "Exit codes: 0" in text


def test_the_command_line_wins_and_the_result_is_printed(tmp_path: Path) -> None:
    """Over the environment, which wins over the file."""
    file = tmp_path / "c.toml"
    file.write_text("[server]\ngrpc_port = 1\nhttp_port = 2\nadmin_port = 3\n")
    done = run(
        "--print-config",
        *("--config", str(file), "--grpc-port", "21"),
        TICKRING_SERVER__GRPC_PORT="11",
        TICKRING_SERVER__HTTP_PORT="12",
    )
    assert (done.returncode, done.stderr) == (0, "")
    server = tomllib.loads(done.stdout)["server"]
    assert (server["grpc_port"], server["http_port"], server["admin_port"]) == (21, 12, 3)


def test_printed_file_loads_back(tmp_path: Path) -> None:
    """With its profile, although that of the calendar may be another one by then."""
    for options_of_first in (["--profile", "off_hours"], ["--profile", "auto"], []):
        printed = run("--print-config", *options_of_first).stdout
        file = tmp_path / "c.toml"
        file.write_text(printed)
        again = run("--print-config", "--config", str(file))
        assert (again.returncode, again.stderr) == (0, "")
        assert tomllib.loads(again.stdout) == tomllib.loads(printed)


def test_automatic_profile_starts_with_what_the_calendar_says() -> None:
    """Of an exchange that is always open; a warning about another one's days is not part of the file."""
    done = run("--print-config", TICKRING_PROFILE="auto", TICKRING_CALENDAR__EXCHANGE="24/7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == 'profile = "auto"  # market_hours now'
    assert tomllib.loads(done.stdout)["scheduler"]["max_batch_size"] == 64
    done = run("--print-config", "--profile", "auto", TICKRING_CALENDAR__EXCHANGE="XBOM")
    assert tomllib.loads(done.stdout)["profile"] == "auto"


def test_calendar_is_checked_where_it_is_followed() -> None:
    """Elsewhere nobody looks at it, and its library may be missing."""
    done = run("--check-config", "--profile", "auto", TICKRING_CALENDAR__EXCHANGE="XNYSE")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("calendar.exchange = XNYSE: is no exchange, did you mean XNYS")
    done = run("--check-config", TICKRING_CALENDAR__EXCHANGE="XNYSE")
    assert (done.returncode, done.stdout) == (0, "configuration is valid\n")


def test_bad_settings_exit_with_2_and_a_line_each() -> None:
    """On stderr, and nothing on stdout."""
    done = run("--check-config", "--grpc-port", "99999", "--device", "tpu", TICKRING_SERVER__HOTS="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "TICKRING_SERVER__HOTS = x: is no setting, did you mean TICKRING_SERVER__HOST?",
        "server.grpc_port = 99999: must be at most 65535",
        "executor.device = tpu: must be auto, cpu, cuda, cuda:N or a list of cpu and cuda:N",
    ]


@pytest.mark.parametrize("arguments", [["--grpc-prot", "1"], ["--grpc", "1"], ["--grpc-port"], ["extra"]])
def test_misuse_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown, shortened or empty flag, or an argument too many."""
    with pytest.raises(SystemExit) as raised:
        options.parse(arguments)
    assert raised.value.code == 2
    assert arguments[0] in capsys.readouterr().err
