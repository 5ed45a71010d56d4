"""Where the value of a setting comes from, and what a change at run time makes of it."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from server.configuration import Configuration, load_configuration
from server.layers import as_text
from server.problems import SettingsError
from server.settings import Settings

BUDGET = "scheduler.latency_budget_ms"
LARGEST = "scheduler.max_batch_size"

Load = Callable[..., Configuration]


@pytest.fixture
def file(short_path: Path) -> Path:
    """An empty one."""
    path = short_path / "tickring.toml"
    path.touch()
    return path


@pytest.fixture
def load(file: Path) -> Load:
    """Loads from the file, this environment, and the command line."""

    def load(
        text: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> Configuration:
        file.write_text(text)
        return load_configuration(overrides or {}, config=file, profile=profile, environ=environ or {})

    return load


def problems(change: Callable[..., object], *arguments: Any, **named: Any) -> list[str]:
    """What is said of a change that is refused."""
    with pytest.raises(SettingsError) as raised:
        change(*arguments, **named)
    return str(raised.value).splitlines()


# -- origins ------------------------------------------------------------------------------------


def test_every_value_has_an_origin(load: Load) -> None:
    """Beside those of the tables, the profile that was asked for."""
    configuration = load("[slo]\nmin_rps = 9")
    values = configuration.values()
    assert list(values) == ["profile", *Settings().leaves()]
    assert (values["profile"], values["slo.min_rps"], values["tls.cert"]) == ("market_hours", 9, None)
    assert {configuration.origin(path) for path in values} == {"default", "profile market_hours", "file"}
    with pytest.raises(KeyError):
        configuration.origin("slo")


def test_origin_is_the_topmost_layer_that_names_the_setting(load: Load) -> None:
    """Also where it says the same as the one below."""
    layers: dict[str, Any] = {"profile": "off_hours"}
    found = [load(**layers).origin(BUDGET)]
    for name, layer in (
        ("text", "[scheduler]\nlatency_budget_ms = 20"),
        ("environ", {"TICKRING_SCHEDULER__LATENCY_BUDGET_MS": "20"}),
        ("overrides", {"scheduler": {"latency_budget_ms": "20"}}),
    ):
        layers[name] = layer
        found.append(load(**layers).origin(BUDGET))
    configuration = load(**layers).with_updates({BUDGET: "20"})
    found.append(configuration.origin(BUDGET))
    assert found == ["profile off_hours", "file", "environment", "command line", "run time"]
    assert configuration.settings.scheduler.latency_budget_ms == 20
    assert configuration.origin("scheduler.adaptive") == "default"


def test_origin_of_a_value_deep_in_the_tables(load: Load) -> None:
    """One value of a class changes the origin of that value only."""
    table = "scheduler.classes.background_tasks"
    configuration = load(f"[{table}]\nqueue_limit = 7", profile="off_hours")
    found = [configuration.origin(f"{table}.{name}") for name in ("queue_limit", "max_wait_ms", "slack_ms")]
    assert found == ["file", "profile off_hours", "default"]


# -- the choice of a profile --------------------------------------------------------------------


def test_profile_is_chosen_by_the_topmost_layer_that_does(load: Load) -> None:
    """The file, the environment, the option, and run time."""
    in_file, in_environment = 'profile = "off_hours"', {"TICKRING_PROFILE": "stress_test"}
    configurations = [
        load(),
        load(in_file),
        load(in_file, in_environment),
        load(in_file, in_environment, profile="market_hours"),
        load(in_file, in_environment, profile="market_hours").with_updates({"profile": "off_hours"}),
    ]
    assert [(each.chosen_profile, each.origin("profile")) for each in configurations] == [
        ("market_hours", "default"),
        ("off_hours", "file"),
        ("stress_test", "environment"),
        ("market_hours", "command line"),
        ("off_hours", "run time"),
    ]
    assert [each.profile for each in configurations] == [each.chosen_profile for each in configurations]
    assert [each.settings.scheduler.max_batch_size for each in configurations] == [64, 128, 256, 64, 128]


@pytest.mark.parametrize(("text", "shown"), [("'day'", "day"), ("''", '""'), ("5", "5"), ("{}", "{}")])
def test_unknown_profile_is_a_problem_in_every_layer(load: Load, text: str, shown: str) -> None:
    """It is the one that counts; below another one it is not looked at."""
    line = f"profile = {shown}: must be one of market_hours, off_hours, stress_test, auto"
    assert problems(load, f"profile = {text}") == [line]
    assert load(f"profile = {text}", profile="off_hours").profile == "off_hours"


@pytest.mark.parametrize("name", ["", "day"])
def test_unknown_profile_at_run_time(load: Load, name: str) -> None:
    """Asked for, or told to be in effect; "auto" is none that can be in effect."""
    assert problems(load().with_updates, {"profile": name})[0].startswith("profile = ")
    assert problems(load(profile="auto").with_profile, name)[0].startswith("profile = ")
    assert problems(load(profile="auto").with_profile, "auto")[0].startswith("profile = auto: must be one of")


def test_automatic_profile_is_whatever_was_last_told(load: Load) -> None:
    """The first is that of market hours; updates and a new file leave it."""
    started = load(profile="auto")
    assert (started.chosen_profile, started.profile) == ("auto", "market_hours")
    closed = started.with_profile("off_hours")
    assert (closed.chosen_profile, closed.profile) == ("auto", "off_hours")
    assert closed.settings.scheduler.max_batch_size == 128
    assert closed.origin(LARGEST) == "profile off_hours"
    assert closed.origin("profile") == "command line"
    assert closed.with_updates({BUDGET: "3"}).reloaded().profile == "off_hours"
    assert closed.with_profile("market_hours").settings == started.settings


def test_profile_that_was_chosen_by_name_does_not_follow_the_calendar(load: Load) -> None:
    """Until "auto" is chosen; then the one in effect stays until another is told."""
    stress = load(profile="auto").with_updates({"profile": "stress_test"})
    told = stress.with_profile("off_hours")
    assert (told.profile, told.settings) == ("stress_test", stress.settings)
    automatic = told.with_updates({"profile": "auto"})
    assert (automatic.chosen_profile, automatic.profile) == ("auto", "stress_test")
    back = stress.with_updates({"profile": None})
    assert (back.chosen_profile, back.origin("profile")) == ("auto", "command line")
    assert back.with_profile("off_hours").profile == "off_hours"


def test_automatic_profile_is_checked_under_both_that_it_switches_between(load: Load) -> None:
    """A file that only fits one of them would be found wrong at the close."""
    buckets = "[scheduler]\nbuckets = [1, 64]"
    after_close = (
        "scheduler.buckets = [1, 64]: must end with max_batch_size, 128, under the profile off_hours"
    )
    assert problems(load, buckets, profile="auto") == [after_close]
    market = load(buckets, profile="market_hours")
    assert problems(market.with_updates, {"profile": "auto"}) == [after_close]
    wrong_in_both = problems(load, "slo.p50_ms = -1", profile="auto")
    assert wrong_in_both == ["slo.p50_ms = -1: must be at least 0"]
    assert load(f"{buckets}\nmax_batch_size = 64", profile="auto").with_profile("off_hours")


# -- run time -----------------------------------------------------------------------------------


def test_updates_are_text_as_in_the_environment(load: Load) -> None:
    """Lists as in TOML; the configuration before is as it was."""
    before = load()
    after = before.with_updates(
        {
            "scheduler.adaptive": "false",
            "scheduler.buckets": "[1, 16, 64]",
            "scheduler.spin_us": "auto",
            "scheduler.classes.batch_processing.queue_limit": "7",
            "models.default_model": "m",
        }
    )
    assert after.settings.scheduler.adaptive is False
    assert after.settings.scheduler.buckets == (1, 16, 64)
    assert after.settings.class_limits[2].queue_limit == 7
    assert after.settings.models.default_model == "m"
    assert before.settings == Settings()
    assert before.origin("scheduler.adaptive") == "default"


def test_every_value_can_be_given_back_as_its_text(load: Load) -> None:
    """What is shown is what an update takes; what is not set is shown as nothing."""
    configuration = load(
        "[server]\nhost = '[::1'\n[scheduler]\nbuckets = [1, 64]\n[executor]\ncpu_affinity = [3, 4]\n"
        "[tls]\ncert = 'c'\nkey = 'k'",
    )
    texts = {path: as_text(value) for path, value in configuration.values().items()}
    assert texts["scheduler.buckets"] == "[1, 64]"
    assert texts["scheduler.adaptive"] == "true"
    assert texts["tls.client_ca"] == ""
    again = load().with_updates({path: text for path, text in texts.items() if text})
    assert again.values() == configuration.values()


def test_later_updates_add_to_earlier_ones(load: Load) -> None:
    """And take them back, one by one; taking back what was never set is no change."""
    configuration = load("[scheduler]\nlatency_budget_ms = 5").with_updates({BUDGET: "6"})
    configuration = configuration.with_updates({"scheduler.adaptive": "false"})
    assert (configuration.values()[BUDGET], configuration.origin(BUDGET)) == (6, "run time")
    configuration = configuration.with_updates({BUDGET: None, LARGEST: None})
    assert (configuration.values()[BUDGET], configuration.origin(BUDGET)) == (5, "file")
    assert configuration.settings.scheduler.adaptive is False
    assert configuration.origin(LARGEST) == "profile market_hours"


def test_updates_are_validated_as_a_whole(load: Load) -> None:
    """With everything that is wrong, and together with what was set before."""
    configuration = load().with_updates({LARGEST: "32"})
    assert problems(configuration.with_updates, {BUDGET: "0", "slo.p50_ms": "x"}) == [
        "scheduler.latency_budget_ms = 0: must be more than 0",
        "slo.p50_ms = x: must be a number",
    ]
    assert problems(configuration.with_updates, {"scheduler.buckets": "[1, 64]"}) == [
        "scheduler.buckets = [1, 64]: must end with max_batch_size, 32"
    ]
    both = configuration.with_updates({"scheduler.buckets": "[1, 64]", LARGEST: "64"})
    assert both.settings.scheduler.resolved_buckets == (1, 64)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("scheduler.latency_budget", "did you mean scheduler.latency_budget_ms?"),
        ("latency_budget_ms", "did you mean scheduler.latency_budget_ms?"),
        ("executor.latency_budget_ms", "did you mean scheduler.latency_budget_ms?"),
        (
            "classes.market_data_update.slack_ms",
            "did you mean scheduler.classes.market_data_update.slack_ms?",
        ),
        ("profiles", "did you mean profile?"),
        ("scheduler", "allowed is <table>.<setting>"),
        ("", "allowed is <table>.<setting>"),
        ("scheduler.classes.x.y\n", "allowed is <table>.<setting>"),
    ],
)
def test_unknown_path_is_a_problem(load: Load, path: str, allowed: str) -> None:
    """Also of what is to be taken back; the nearest setting is named."""
    printed = path if path.strip() == path != "" else json.dumps(path)
    for value, shown in (("1", "1"), (None, "unset")):
        (problem,) = problems(load().with_updates, {path: value, BUDGET: "5"})
        assert problem == f"{printed} = {shown}: is no setting, {allowed}"


def test_reload_reads_file_and_environment_again(load: Load, file: Path) -> None:
    """What was set at run time, and on the command line, stays on top."""
    environ = {"TICKRING_SLO__P50_MS": "1"}
    before = load("[slo]\np95_ms = 2", environ, {"slo": {"p99_ms": "3"}}).with_updates({"slo.max_ms": "4"})
    file.write_text("profile = 'off_hours'\n[slo]\np95_ms = 20\np99_ms = 30\nmax_ms = 40\nmin_rps = 50")
    environ["TICKRING_SLO__P50_MS"] = "10"
    after = before.reloaded()
    slo = after.settings.slo
    assert (slo.p50_ms, slo.p95_ms, slo.p99_ms, slo.max_ms, slo.min_rps) == (10, 20, 3, 4, 50)
    assert (after.profile, after.origin("slo.max_ms")) == ("off_hours", "run time")
    assert after.with_updates({"slo.max_ms": None}).settings.slo.max_ms == 40
    assert before.settings.slo.p95_ms == 2


def test_update_does_not_read_the_file_again(load: Load, file: Path) -> None:
    """It may be half written; SIGHUP is there to say that it is not."""
    before = load("[slo]\np95_ms = 2")
    file.write_text("[slo")
    assert before.with_updates({"slo.max_ms": "4"}).with_profile("off_hours").settings.slo.p95_ms == 2
    assert problems(before.reloaded)[0].startswith(f"config = {file}: must be TOML")


def test_reload_is_validated_together_with_what_was_set_at_run_time(load: Load, file: Path) -> None:
    """And changes nothing when it does not fit."""
    before = load().with_updates({"scheduler.buckets": "[1, 64]"})
    file.write_text("[scheduler]\nmax_batch_size = 32")
    assert problems(before.reloaded) == ["scheduler.buckets = [1, 64]: must end with max_batch_size, 32"]
    assert before.settings.scheduler.max_batch_size == 64


def test_printed_configuration_says_which_profile_is_in_effect(load: Load) -> None:
    """As a comment where it was not chosen by name."""
    printed = load(profile="auto").with_profile("off_hours").to_toml()
    assert printed.splitlines()[0] == 'profile = "auto"  # off_hours now'
    assert tomllib.loads(printed)["profile"] == "auto"
    assert load(printed).values() == load(profile="auto").with_profile("off_hours").values()
    assert load(profile="off_hours").to_toml().splitlines()[0] == 'profile = "off_hours"'
