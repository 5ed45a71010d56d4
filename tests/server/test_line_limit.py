"""Lines of one event are bounded, whoever writes them."""

import json
import subprocess
import sys

from server.telemetry.line_limit import BURST, LINES_PER_S, LineLimit
from tests.server.processes import ENVIRONMENT


def test_burst_is_let_through_and_what_follows_is_counted() -> None:
    """The next line that is written says how many were not."""
    now_s = [0.0]
    limit = LineLimit(lambda: now_s[0])
    assert [limit.admit("it happened") for _ in range(BURST)] == [0] * BURST
    assert [limit.admit("it happened") for _ in range(7)] == [None] * 7
    now_s[0] += 1.5 / LINES_PER_S
    assert [limit.admit("it happened"), limit.admit("it happened")] == [7, None]


def test_events_have_limits_of_their_own() -> None:
    """One that is repeated hides no other."""
    limit = LineLimit(lambda: 0.0)
    for _ in range(2 * BURST):
        limit.admit("loud")
    assert limit.admit("rare") == 0


def test_quiet_gives_the_whole_burst_back_and_no_more() -> None:
    """However long it lasts."""
    now_s = [0.0]
    limit = LineLimit(lambda: now_s[0])
    for _ in range(2 * BURST):
        limit.admit("it happened")
    now_s[0] += 86_400.0
    assert limit.admit("it happened") == BURST
    assert sum(limit.admit("it happened") is not None for _ in range(2 * BURST)) == BURST - 1


def test_log_of_a_process_is_limited() -> None:
    """A loop that logs does not fill it, and other events still appear."""
    code = (
        "import structlog\n"
        "from server.telemetry import logs\n"
        "logs.configure('json', 'info')\n"
        "log = structlog.get_logger()\n"
        "for number in range(20_000): log.error('loud', number=number)\n"
        "log.info('rare')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert BURST <= events.count("loud") < 1000
    assert events.count("rare") == 1
