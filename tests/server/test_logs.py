"""What the processes write to stderr, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

from tests.server.processes import ENVIRONMENT

LOG = """
import sys, structlog
from server.telemetry import logs
logs.configure(*sys.argv[1:3])
log = structlog.get_logger()
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)("it happened", level_was=level, text="é\\udcff\\n")
"""


def run(log_format: str, level: str, code: str = LOG) -> "subprocess.CompletedProcess[bytes]":
    """What a process with these settings writes."""
    return subprocess.run(
        [sys.executable, "-c", code, log_format, level],
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_json_is_one_object_per_line_from_a_level_on(level: str, lines: int) -> None:
    """With time, level, event and fields, and nothing on stdout."""
    done = run("json", level)
    assert (done.returncode, done.stdout) == (0, b"")
    logged = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert [line["level_was"] for line in logged] == ["debug", "info", "warning", "error"][-lines:]
    assert all(line["event"] == "it happened" and line["level"] == line["level_was"] for line in logged)
    assert all(line["timestamp"].endswith("Z") for line in logged)


def test_text_is_for_people() -> None:
    """One line per event, without colours where nobody sees them."""
    done = run("text", "warning")
    first, second = done.stderr.decode().splitlines()
    assert "[warning  ] it happened" in first
    assert "[error    ] it happened" in second
    assert "\x1b" not in first


def test_log_that_nobody_reads_stops_nothing() -> None:
    """The reader of stderr has gone: lines are dropped, the process ends as it wants to."""
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, "-c", LOG + "print('done')", "json", "debug"],
        stdout=subprocess.PIPE,
        stderr=writer,
        env=ENVIRONMENT,
    ) as process:
        os.close(writer)
        out, _ = process.communicate()
    assert (process.returncode, out) == (0, b"done\n")


def test_full_disk_stops_nothing() -> None:
    """Nor does a file that takes no more."""
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", LOG + "print('done')", "json", "debug"],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
            env=ENVIRONMENT,
        )
    assert (process.returncode, process.stdout) == (0, b"done\n")
