"""What a change of each setting takes."""

import re
from pathlib import Path

import pytest

from server.configuration import load_configuration
from server.effects import _TABLE, Effect, changed, effect_of
from server.settings import Settings

MARKET = load_configuration({}, environ={})


def test_every_setting_has_an_effect_and_nothing_else_has() -> None:
    """One that is added without a thought about it fails here."""
    named = [
        f"{table}.{name}"
        for tables in _TABLE.values()
        for table, names in tables.items()
        for name in names.split()
    ]
    assert len(named) == len(set(named)), "a setting has two"
    leaves = Settings().leaves()
    classes = {path for path in leaves if path.startswith("scheduler.classes.")}
    assert len(classes) == 20
    assert set(named) | classes == set(leaves)
    assert {effect_of(path) for path in classes} == {Effect.LIVE}
    with pytest.raises(KeyError):
        effect_of("scheduler.classes")


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("scheduler.early_refusal", Effect.LIVE),
        ("executor.stall_timeout_s", Effect.LIVE),
        ("executor.precision", Effect.ENGINES),
        ("scheduler.max_batch_size", Effect.ENGINES),
        ("scheduler.slots_per_frontend", Effect.RESTART),
        ("server.grpc_port", Effect.RESTART),
        ("models.repository", Effect.RESTART),
        ("models.default_model", Effect.LIVE),
    ],
)
def test_effect_of_a_setting(path: str, effect: Effect) -> None:
    """A few of each."""
    assert effect_of(path) is effect


def test_page_about_settings_says_the_same() -> None:
    """Its table has every setting in the right column; the classes are one entry there."""
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    written = {
        f"{table}.{name}": effect
        for table, *cells in rows
        for effect, cell in zip(Effect, cells, strict=True)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert written.pop("scheduler.classes") is Effect.LIVE
    leaves = [path for path in Settings().leaves() if not path.startswith("scheduler.classes.")]
    assert written == {path: effect_of(path) for path in leaves}


def test_changed_names_what_has_another_value() -> None:
    """And what that takes; a list and an unset value among them."""
    updates = {
        "slo.p50_ms": "50",
        "scheduler.buckets": "[1, 64]",
        "models.default_model": "m",
        "server.host": "::1",
    }
    after = MARKET.with_updates(updates).settings
    assert changed(MARKET.settings, after) == {
        "server.host": Effect.RESTART,
        "models.default_model": Effect.LIVE,
        "scheduler.buckets": Effect.ENGINES,
    }
    assert changed(after, MARKET.settings).keys() == changed(MARKET.settings, after).keys()
    assert changed(after, after) == {}


def test_switch_at_the_open_or_the_close_needs_no_restart() -> None:
    """The two profiles that follow a calendar differ in what changes while the service runs."""
    off_hours = load_configuration({}, profile="off_hours", environ={}).settings
    effects = changed(MARKET.settings, off_hours)
    assert effects["scheduler.max_batch_size"] is Effect.ENGINES
    assert set(effects.values()) == {Effect.LIVE, Effect.ENGINES}
