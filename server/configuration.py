"""The settings that are in effect, where each of them comes from, and what they would be after a change.

A configuration never changes: each change is a new one, validated as a whole, or a SettingsError with all
that is wrong with it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.layers import (
    AUTO,
    CHOICE,
    DEFAULT_PROFILE,
    MARKET_HOURS,
    OFF_HOURS,
    Layer,
    Merged,
    check_paths,
    check_profile,
    choice,
    command_line_layer,
    environment_layer,
    file_layer,
    merge,
    profile_layer,
    run_time_layer,
    to_toml,
)
from server.problems import Problem, SettingsError, problem_of
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the layers are read from: nested tables of the command line, file, profile option, variables."""

    overrides: Mapping[str, Any]
    config: Path | None
    profile: str | None
    environ: Mapping[str, str]

    def read(self) -> tuple[Layer, ...]:
        """All layers but the profile and those of run time, as they are now; raises SettingsError."""
        return (
            file_layer(self.config),
            environment_layer(self.environ),
            command_line_layer(self.overrides, self.profile),
        )


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings at one moment.

    Attributes:
        profile: the one in effect.
        chosen_profile: the one asked for, which may be "auto".
    """

    settings: Settings
    profile: str
    chosen_profile: str
    _origins: Mapping[str, str]
    _sources: Sources
    _read: tuple[Layer, ...]
    _run_time: Mapping[str, str]

    def origin(self, path: str) -> str:
        """Where the value of a setting comes from; KeyError where there is no such setting.

        One of "default", "profile NAME", "file", "environment", "command line" and "run time".
        """
        return self._origins[path]

    def values(self) -> dict[str, Any]:
        """Every setting by its dotted path, as JSON has it; first `profile`, the one asked for."""
        return {CHOICE: self.chosen_profile, **self.settings.leaves()}

    def to_toml(self) -> str:
        """A file that loads back to this configuration; what is not set is left out."""
        in_effect = f"  # {self.profile} now" if self.chosen_profile == AUTO else ""
        tables = to_toml(self.settings.model_dump(mode="json"))
        return f"{to_toml({CHOICE: self.chosen_profile})}{in_effect}\n{tables}\n"

    def reloaded(self) -> "Configuration":
        """With file and environment as they are now; what was set at run time stays on top of them.

        Where "auto" is chosen, the profile in effect stays what it is.

        Raises:
            SettingsError: with every problem at once; only an unreadable file and a bad profile stand alone.
        """
        return _built(self._sources, self._sources.read(), self._run_time, self.profile)

    def with_updates(self, updates: Mapping[str, str | None]) -> "Configuration":
        """With other values set at run time, by dotted path; file and environment stay as they were read.

        A value is text as in the environment; None takes back what was set at run time. `profile` is a path
        too; where it becomes "auto", the profile in effect stays until `with_profile` names another.

        Raises:
            SettingsError: with every problem at once; a bad path or profile is told before the values are.
        """
        check_paths(updates)
        run_time = {**self._run_time, **updates}
        kept = {path: text for path, text in run_time.items() if text is not None}
        return _built(self._sources, self._read, kept, self.profile)

    def with_profile(self, name: str) -> "Configuration":
        """With this profile in effect while "auto" is chosen; otherwise nothing changes.

        Raises:
            SettingsError: there is no such profile.
        """
        check_profile(name)
        return _built(self._sources, self._read, self._run_time, name)


def load_configuration(
    overrides: Mapping[str, Any],
    *,
    config: Path | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Merges the layers, those nested `overrides` on top, and validates the result as a whole.

    Where "auto" is chosen, the default profile is in effect until `with_profile` names another.

    Raises:
        SettingsError: with every problem at once; only an unreadable file and a bad profile stand alone.
    """
    sources = Sources(overrides, config, profile, os.environ if environ is None else environ)
    return _built(sources, sources.read(), {}, DEFAULT_PROFILE)


def load_settings(
    overrides: Mapping[str, Any],
    *,
    config: Path | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """What `load_configuration` finds, where nobody asks how it came about."""
    return load_configuration(overrides, config=config, profile=profile, environ=environ).settings


def _built(
    sources: Sources, read: tuple[Layer, ...], run_time: Mapping[str, str], in_effect: str
) -> Configuration:
    layers = (*read, run_time_layer(run_time))
    chosen, chosen_by = choice(layers)
    profile = in_effect if chosen == AUTO else chosen
    merged = merge((profile_layer(profile), *layers))
    settings, problems = _validated(merged)
    if chosen == AUTO:
        # What would be wrong after the next switch is wrong now: nobody is there to mend it at the close.
        problems += [
            problem for name in (MARKET_HOURS, OFF_HOURS) for problem in _only_under(name, layers, problems)
        ]
    if problems:
        raise SettingsError(problems)
    return Configuration(
        settings, profile, chosen, {CHOICE: chosen_by, **merged.origins}, sources, read, run_time
    )


def _validated(merged: Merged) -> tuple[Settings, list[Problem]]:
    """The settings, which are the defaults where there are problems."""
    try:
        return Settings.model_validate(merged.tables), merged.problems
    except ValidationError as error:
        return Settings(), merged.problems + [problem_of(entry, Settings) for entry in error.errors()]


def _only_under(profile: str, layers: tuple[Layer, ...], known: list[Problem]) -> list[Problem]:
    _, problems = _validated(merge((profile_layer(profile), *layers)))
    return [
        replace(problem, allowed=f"{problem.allowed}, under the profile {profile}")
        for problem in problems
        if problem not in known
    ]
