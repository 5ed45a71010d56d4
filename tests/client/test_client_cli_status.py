"""`tickring stats` and `tickring top`: what they print, and how they exit."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from client import bars, cli, top
from client.admin_info import ServerStatus
from client.cli_status_output import number, percent, print_slo, print_stats
from client.status_info import (
    Activity,
    FlowActivity,
    ModelActivity,
    Recommendation,
    SloClass,
    SloObjective,
    SloReport,
    SloWindow,
)

if TYPE_CHECKING:
    from tests.client.conftest import Standin

NOBODY = "127.0.0.1:1"
PATIENCE_S = 60.0
URGENT = FlowActivity("", "real_time_trading", 120, 2, 0.5, 1, (0, 3, 9, 0), 0.8, 2.5, 4.0, 4.5, 4.9)
QUIET = FlowActivity("", "background_tasks", 0, 0, 0, 0, (0, 0, 0, 0), None, None, None, None, None)
MODEL = ModelActivity(
    "a_model_with_a_name_of_forty_characters_xy", 30, 180, 6.0, 32, (), (0, 5, 0, 0), 3.1, 4.9, ()
)
MISSED = SloObjective(
    "p99_ms",
    100,
    "missed",
    None,
    0.98,
    0.99,
    2.0,
    0.0,
    "",
    (SloClass("real_time_trading", 100, 140, "missed"),),
)
ERRORS = SloObjective("max_error_ratio", 0.01, "met", 0.002, 0.998, 0.99, 0.2, 0.8, "4 UNAVAILABLE", ())
ADVICE = Recommendation(
    "compute_dominates", "executor.precision", "try bf16 [really]", "a request takes 90 ms"
)
REPORT = SloReport(
    "missed",
    (
        SloWindow(60, 60, "missed", 7000, (MISSED, ERRORS)),
        SloWindow(300, 60, "missed", 7000, (MISSED, ERRORS)),
    ),
    (ADVICE,),
)
ACTIVITY = Activity(60, 60, (URGENT, QUIET), (URGENT, QUIET), (MODEL,), (0.1, 1, 10))
STATUS = ServerStatus(
    3_723_000_000_000,
    4,
    (),
    (),
    "ready",
    "market_hours",
    (ACTIVITY, ACTIVITY),
    {"cpu_utilization_ratio": 0.62},
    REPORT,
)


@pytest.fixture(autouse=True)
def _target(admin_port: "Standin", monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find the admin port by its own variable."""
    monkeypatch.setenv("TICKRING_ADMIN_TARGET", admin_port.target)
    monkeypatch.setenv("TICKRING_TARGET", NOBODY)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that is right."""
    assert cli.run(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def shown(status: ServerStatus, *, blocks: bool = True) -> list[str]:
    """The lines of a frame, 80 columns wide."""
    out = Console(width=top.COLUMNS, force_terminal=False, markup=False, highlight=False)
    with out.capture() as captured:
        out.print(top.frame(status, "127.0.0.1:8003", blocks=blocks))
    return captured.get().splitlines()


def test_stats_are_those_of_the_last_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """By model and class, with rates, quantiles and depth."""
    lines = printed(capsys, "stats").splitlines()
    # Of the version that the tests before have left.
    assert re.fullmatch(r"ready, profile market_hours, settings version \d+, promises met", lines[0])
    assert "the last 60 s, times in ms" in lines
    assert lines[lines.index("pair") + 1].split()[:2] == ["class", "req/s"]
    (urgent,) = [line.split() for line in lines if line.startswith("real_time_trading")]
    assert (urgent[1], urgent[-1]) == ("120", "1")
    assert not any(len(line) > 80 for line in lines)
    assert "health" not in " ".join(lines)


def test_stats_have_the_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """One table where longer windows have seen no more than the shorter."""
    out = printed(capsys, "stats", "--slo")
    assert out.startswith("promises: met\n")
    for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms", "min_rps", "target_rps", "max_error_ratio"):
        assert re.search(rf"^{name} .* met\s*$", out, re.MULTILINE)


def test_stats_try_a_prediction_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the rest."""
    out = printed(capsys, "stats", "--deep")
    assert out.endswith("health: healthy\n  frontend-0 pair version 3: 1.5 ms\n")
    assert "health: healthy" in printed(capsys, "stats", "--deep", "--slo")


def test_stats_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything, or the promises alone."""

    def answered(*arguments: str) -> Any:
        out = printed(capsys, *arguments, "--json")
        assert out.count("\n") == 1
        return json.loads(out)

    found = answered("stats", "--deep")
    assert found["activity"][1]["classes"][0]["priority"] == "real_time_trading"
    assert found["activity"][1]["classes"][1]["wait_p99_ms"] is None
    assert found["health"]["state"] == "healthy"
    assert answered("stats", "--slo")["windows"][0]["objectives"][0]["name"] == "p50_ms"
    assert answered("top")["state"] == "ready"


def test_missed_promise_says_which_class_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Text of the server's is shown as it is."""
    print_slo(REPORT)
    out = capsys.readouterr().out
    assert out.count("the last 60 s, 7000 requests") == 1
    assert "p99_ms of real_time_trading: 140 ms, with its slack it may be 100 ms" in out
    assert "max_error_ratio: 4 UNAVAILABLE" in out
    assert "executor.precision: try bf16 [really]\n  a request takes 90 ms" in out


def test_missed_promise_exits_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a script need not read it; without --slo it is no failure."""

    async def missed(*_: object) -> ServerStatus:
        return STATUS

    monkeypatch.setattr("client.cli_status._status", missed)
    assert cli.run(["stats", "--slo"]) == 1
    assert cli.run(["stats"]) == 0
    capsys.readouterr()


def test_server_that_has_just_started(capsys: pytest.CaptureFixture[str]) -> None:
    """Has nothing to tell yet, and says so."""
    young = ServerStatus(5, 1, (), (), "starting", "market_hours")
    print_stats(young)
    assert "nothing is known yet" in capsys.readouterr().out
    assert shown(young)[-1] == "nothing is known yet"


def test_frame_fits_80_columns() -> None:
    """Whatever the names; all that matters is in it."""
    lines = shown(STATUS)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "tickring 127.0.0.1:8003  ready  up 1:02:03  market_hours  settings 4"
    assert lines[1] == "promises missed  p99 98% missed  errors 0.2%"
    (urgent,) = [line.split() for line in lines if line.startswith("real_time_trading")]
    assert urgent == ["real_time_trading", "120", "120", "2", "0.8", "2.5", "4.9", "1", ".▃█."]
    assert "cpu 62%" in lines
    assert any(line.startswith("executor.precision: try bf16 [really]") for line in lines)


def test_frame_without_blocks_is_plain() -> None:
    """For terminals that cannot show them."""
    assert "\n".join(shown(STATUS, blocks=False)).isascii()


def test_top_prints_one_frame_where_nobody_can_press_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    """With --once, and where output is no terminal."""
    for arguments in (["top", "--once"], ["top"]):
        out = printed(capsys, *arguments)
        assert out.startswith("tickring 127.0.0.1:")
        assert out.count("real_time_trading") == 1
        assert "\x1b" not in out


def test_top_draws_until_q_is_pressed(admin_port: "Standin") -> None:
    """On a terminal, which is left as it was."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    command = [sys.executable, "-m", "client.cli", "top", "--target", admin_port.target]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    until_s = time.monotonic() + PATIENCE_S

    def read_until(wanted: bytes, count: int) -> None:
        nonlocal seen
        while seen.count(wanted) < count:
            ready, _, _ = select.select([ours], [], [], until_s - time.monotonic())
            assert ready, seen.decode(errors="replace")
            seen += os.read(ours, 1 << 16)

    try:
        read_until(b"real_time_trading", 3)  # the first frame, and two seconds more
        os.write(ours, b"xq")
        read_until(b"\x1b[?1049l", 1)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert seen.index(b"\x1b[?1049h") < seen.index(b"real_time_trading")


@pytest.mark.parametrize("command", ["stats", "top"])
def test_server_that_is_not_there(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """One line and exit code 1; top does not draw nothing for ever."""
    assert cli.run([command, "--target", NOBODY]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("tickring: UNAVAILABLE: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["stats", "top"])
def test_help_has_an_example_and_the_options_of_the_admin_port(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """They work from afar as the other commands do."""
    out = printed(capsys, command, "--help")
    assert f"Example: tickring {command}" in out
    for option in ("--target", "--tls-ca", "--token", "--json", "TICKRING_ADMIN_TARGET"):
        assert option in out


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [([], ""), ([0, 0], ".."), ([1, 1], "██"), ([0, 1, 1000], ".▁█"), ([4, 8], "▅█"), ([1, 2, 8], "▂▃█")],
)
def test_bars(counts: list[int], drawn: str) -> None:
    """What is there at all is seen, nothing is a dot, the tallest is full."""
    assert bars.bars(counts) == drawn
    assert len(bars.bars(counts, blocks=False)) == len(counts)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0, "0"),
        (0.00001, "0.00"),
        (0.1234, "0.123"),
        (2.5, "2.5"),
        (99.94, "99.9"),
        (12345.6, "12346"),
    ],
)
def test_numbers_are_short(value: float | None, said: str) -> None:
    """And never in powers of ten."""
    assert number(value) == said


@pytest.mark.parametrize(
    ("ratio", "said"), [(None, "-"), (1.0, "100%"), (0.99999, "99.99%"), (0.5, "50%"), (0.0123, "1.23%")]
)
def test_nearly_all_is_not_all(ratio: float | None, said: str) -> None:
    """Who sees 100 % believes that nothing was late."""
    assert percent(ratio) == said
