"""The alerts: right by promtool, tested one by one, about metrics that exist, each with its runbook."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from server.settings import SchedulerTable
from tests.deploy.promql import unknown_names
from tests.test_documents import anchors
from tests.test_repo import ROOT
from tests.tools import need_tools

FOLDER = ROOT / "deploy" / "prometheus"
RULES = (FOLDER / "rules.yml").read_text()
RULES_TEST = (FOLDER / "rules_test.yml").read_text()
TIMEOUT_S = 110.0
SEVERITIES = {"warning", "critical"}


@dataclass(frozen=True)
class Alert:
    """What rules.yml says of one."""

    name: str
    text: str

    def field(self, name: str) -> str:
        """The value behind a key, wherever it stands; empty where there is none."""
        found = re.search(rf"\b{name}: ([^\n}}]+)", self.text)
        return found[1] if found else ""


def alerts() -> list[Alert]:
    """All of them; YAML is read only as far as our own file goes."""
    return [Alert(*found) for found in re.findall(r"- alert: (\w+)\n(.*?)(?=\n *- |\Z)", RULES, re.DOTALL)]


def expressions(text: str) -> Iterator[str]:
    """What follows `expr:`, on its line or as a block."""
    for indent, block, line in re.findall(r"^( *)expr: (?:>-\n((?:\1  .*\n)+)|(.*)\n)", text, re.MULTILINE):
        yield re.sub(rf"^{indent} +", "", block, flags=re.MULTILINE) or line


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    """With the example's configuration, the rules, and the tests of the rules."""
    need_tools("promtool")
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_expressions_name_metrics_and_labels_that_exist() -> None:
    """In the rules and in their tests, and in what an alert says."""
    found = [*expressions(RULES), *re.findall(r"series: '(.*?)'", RULES_TEST)]
    assert len(found) > RULES.count("expr:")
    assert [problem for expr in found for problem in unknown_names(expr)] == []


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(tickring_request_total[5m])", "tickring_request_total"),
        ('tickring_expired_total{model="m"}', "tickring_expired_total{model}"),
        ('tickring_queue_depth{job="j",gpu=~"0|1"}', "tickring_queue_depth{gpu}"),
        ("sum by (device) (tickring_batches_total)", "device"),
        ("model_priority:tickring_request_seconds:p98 > 1", "model_priority:tickring_request_seconds:p98"),
        ("sum(tickring_request_seconds)", "tickring_request_seconds"),
        ("tickring_batch_size_bucket_total", "tickring_batch_size_bucket_total"),
    ],
)
def test_a_planted_name_is_found(expr: str, problem: str) -> None:
    """Wherever it stands."""
    assert list(unknown_names(expr)) == [f"{problem} in {expr}"]


def test_every_alert_is_tested_at_each_severity() -> None:
    """At one time it fires, with this severity; at another, or beside it, it does not."""
    tested = checks()
    assert {alert.name for alert in alerts()} == tested.keys()
    for alert in alerts():
        severity = alert.field("severity")
        assert f'severity="{severity}"' in tested[alert.name], (alert.name, severity)
        cases = set(re.findall(r'{(\w+="[^"]*"),severity', tested[alert.name]))
        assert cases, alert.name
        assert "exp_samples: []" in tested[alert.name], alert.name


def checks() -> Mapping[str, str]:
    """By alert, all that rules_test.yml expects of it."""
    found: dict[str, str] = {}
    for name, expected in re.findall(
        r'alertname="(\w+)".*\n( *exp_samples:.*\n(?: +- {labels.*\n)*)', f"{RULES_TEST}\n"
    ):
        found[name] = found.get(name, "") + expected
    return found


def test_every_alert_waits_and_says_how_bad_it_is_and_what_to_do() -> None:
    """Its page of the runbook exists, and the page lists it."""
    operations = ROOT / "docs" / "operations.md"
    text = operations.read_text()
    assert alerts()
    for alert in alerts():
        assert re.fullmatch(r"[1-9]\d*m", alert.field("for")), alert.name
        assert alert.field("severity") in SEVERITIES, alert.name
        assert alert.field("summary"), alert.name
        page, _, anchor = alert.field("runbook_url").partition("#")
        assert (ROOT / page) == operations, alert.name
        assert anchor in anchors(operations), (alert.name, anchor)
        assert re.search(rf"^\| .*`{alert.name}`.*\(#{anchor}\) \|$", text, re.MULTILINE), alert.name


def test_slacks_are_the_defaults_of_the_classes() -> None:
    """What the latency alerts allow for each."""
    recorded = dict(re.findall(r"slack_seconds\n +expr: vector\((.*)\)\n +labels: {priority: (\w+)}", RULES))
    defaults = SchedulerTable().classes.model_dump()
    assert {name: float(seconds) * 1e3 for seconds, name in recorded.items()} == {
        name: limits["slack_ms"] for name, limits in defaults.items()
    }
