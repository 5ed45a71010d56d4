"""The layers that settings come in: defaults, profile, file, environment, command line, run time.

A later layer wins over those before it, setting by setting. Nothing here validates more than the form; the
merged tables are `server.settings`' to judge.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from server.problems import Problem, SettingsError, shown
from server.settings import Settings

ENV_PREFIX = "TICKRING_"
MARKET_HOURS = "market_hours"
OFF_HOURS = "off_hours"
PROFILES = (MARKET_HOURS, OFF_HOURS, "stress_test")
DEFAULT_PROFILE = MARKET_HOURS
AUTO = "auto"  # one of the first two, by the calendar of an exchange
CHOICE = "profile"  # the path under which the profile is chosen, beside those of `Settings`

DEFAULT, FILE, ENVIRONMENT, COMMAND_LINE, RUN_TIME = (
    "default",
    "file",
    "environment",
    "command line",
    "run time",
)

_KNOWN = frozenset(Settings().leaves()) | {CHOICE}
# Variables of our prefix that are no settings: the client's, and what Kubernetes puts into every pod beside
# a Service named tickring or tickring-<something>.
_FOREIGN = re.compile(
    r"TICKRING_(TARGET|ADMIN_TARGET|TOKEN)=.*"
    r"|TICKRING_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*"
    r"|TICKRING_(\w+_)?PORT=(tcp|udp|sctp)://.*",
    re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one origin says: nested settings tables, not yet validated, and what is wrong with their form.

    `tables` may hold the choice of a profile beside them.
    """

    origin: str
    tables: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()


class Merged(NamedTuple):
    """Layers on top of each other: tables, the origin of each value by its path, and what does not fit."""

    tables: dict[str, Any]
    origins: dict[str, str]
    problems: list[Problem]


def profile_layer(name: str) -> Layer:
    """What a profile sets; `name` is one of PROFILES."""
    text = (resources.files("server") / "profiles" / f"{name}.toml").read_text("utf-8")
    return Layer(f"profile {name}", tomllib.loads(text))


def file_layer(path: Path | None) -> Layer:
    """What a file of settings says. Raises SettingsError when it cannot be read."""
    if path is None:
        return Layer(FILE, {})
    try:
        return Layer(FILE, tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        allowed = f"must be a readable file: {error.strerror}"
    # tomllib's own, bytes that are no UTF-8, a number of thousands of digits; brackets in very many brackets
    except (ValueError, RecursionError) as error:
        allowed = f"must be TOML: {error}"
    raise SettingsError([Problem("config", str(path), allowed)])


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """The settings among the variables; those that look like settings but are none are problems."""
    known = {ENV_PREFIX + path.replace(".", "__").upper(): path for path in _KNOWN}
    tables: dict[str, Any] = {}
    problems = []
    for name, text in sorted(environ.items()):
        if name in known:
            _put(tables, known[name], text)
        elif name.startswith(ENV_PREFIX) and not _FOREIGN.fullmatch(f"{name}={text}"):
            problems.append(Problem(name, text, f"is no setting, {_nearest_variable(name, known)}"))
    return Layer(ENVIRONMENT, tables, tuple(problems))


def command_line_layer(overrides: Mapping[str, Any], profile: str | None) -> Layer:
    """Nested tables that were given as options, and the profile that was."""
    return Layer(COMMAND_LINE, overrides if profile is None else {**overrides, CHOICE: profile})


def run_time_layer(texts: Mapping[str, str]) -> Layer:
    """What was set while the service runs: text by dotted path, each of which must pass `check_paths`."""
    tables: dict[str, Any] = {}
    for path, text in texts.items():
        _put(tables, path, text)
    return Layer(RUN_TIME, tables)


def check_paths(updates: Mapping[str, object]) -> None:
    """Raises SettingsError with every key that is the path of no setting."""
    problems = [
        Problem(shown(path), value, f"is no setting, {_nearest_path(path)}")
        for path, value in updates.items()
        if path not in _KNOWN
    ]
    if problems:
        raise SettingsError(problems)


def choice(layers: Iterable[Layer]) -> tuple[str, str]:
    """The profile that the last of these layers asks for that asks for any, and the origin of that.

    Raises:
        SettingsError: there is no such profile.
    """
    chosen, origin = DEFAULT_PROFILE, DEFAULT
    for layer in layers:
        if CHOICE in layer.tables:
            chosen, origin = layer.tables[CHOICE], layer.origin
    if chosen != AUTO:
        check_profile(chosen)
    return chosen, origin


def check_profile(name: object) -> None:
    """Raises SettingsError when there is no such profile."""
    if name not in PROFILES:
        raise SettingsError([Problem(CHOICE, name, f"must be one of {', '.join(PROFILES)}, {AUTO}")])


def merge(layers: Sequence[Layer]) -> Merged:
    """Lays the layers over the defaults, setting by setting; the choice of a profile is left out."""
    defaults = Settings()
    merged = Merged(defaults.model_dump(), dict.fromkeys(defaults.leaves(), DEFAULT), [])
    for layer in layers:
        merged.problems.extend(layer.problems)
        tables = {name: table for name, table in layer.tables.items() if name != CHOICE}
        _lay(merged, merged.tables, tables, layer.origin, "")
    return merged


def as_text(value: object) -> str:
    """A JSON value as the environment and run time take it; empty where it is not set."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _toml_value(value)


def to_toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """JSON values as a file of settings, without an end of line at its end; what is None is left out."""
    # In our tables the values come before the tables, as they must in the text.
    lines = [f"[{prefix}]"] if prefix else []
    for name, value in tables.items():
        if isinstance(value, Mapping):
            lines += ["", to_toml(value, f"{prefix}.{name}".removeprefix("."))]
        elif value is not None:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines)


def _lay(merged: Merged, into: dict[str, Any], tables: Mapping[str, Any], origin: str, above: str) -> None:
    for name, value in tables.items():
        path = f"{above}{name}"
        if not isinstance(into.get(name), dict):
            into[name] = value
            merged.origins[path] = origin
        elif isinstance(value, Mapping):
            _lay(merged, into[name], value, origin, f"{path}.")
        else:
            # Told here: a table of a later layer would hide it from validation.
            merged.problems.append(Problem(path, value, "must be a table"))


def _put(tables: dict[str, Any], path: str, text: str) -> None:
    *above, name = path.split(".")
    for part in above:
        tables = tables.setdefault(part, {})
    tables[name] = _value(text)


def _value(text: str) -> Any:
    """Lists are written as in TOML; everything else is text that the setting's type reads."""
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return tomllib.loads(f"value = {text}")["value"]
    return text


def _nearest_variable(name: str, known: Iterable[str]) -> str:
    # Without the prefix: shared by all, it would make everything look alike.
    tails = [other.removeprefix(ENV_PREFIX) for other in known]
    near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX).upper(), tails, n=1, cutoff=0.75)
    return f"did you mean {ENV_PREFIX}{near[0]}?" if near else f"allowed is {ENV_PREFIX}<TABLE>__<SETTING>"


def _nearest_path(path: str) -> str:
    # The last part alone is often right, and its table wrong or missing.
    name = path.rpartition(".")[2]
    near = [known for known in sorted(_KNOWN) if known.rpartition(".")[2] == name]
    near = difflib.get_close_matches(path, near or sorted(_KNOWN), n=1, cutoff=0.0 if near else 0.75)
    return f"did you mean {near[0]}?" if near else "allowed is <table>.<setting>"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON escapes all that TOML wants escaped, but for one control character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return str(value)
