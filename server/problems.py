"""What is wrong with a setting, in one line: where, what, and what is allowed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

_MAX_SHOWN = 80
_PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)
# pydantic's kinds of error in our words; a key is the whole name of a kind, or all that is before its "_".
_MESSAGES = {
    "bool": "must be true or false",
    "finite": "must be finite",
    "float": "must be a number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge}",
    "int": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "literal": "must be {expected}",
    "string": "must be text",
    "string_too_short": "must not be empty",
    "tuple": "must be a list, such as [1, 2]",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad setting: where, what, and what is allowed. Its text is one line, whatever the value."""

    path: str
    value: object
    allowed: str

    def __str__(self) -> str:
        return f"{self.path} = {shown(self.value)}: {self.allowed}"


class SettingsError(Exception):
    """The settings cannot be used; its text has a line per problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def shown(value: object) -> str:
    """A value as a problem repeats it: printable ASCII on one line, shortened."""
    if value is None:
        return "unset"
    try:
        text = value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, default=str)
    except ValueError:
        # TOML has hexadecimal numbers: of thousands of digits, Python reads them and does not write them.
        return "a number that is too long"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def problem_of(entry: Mapping[str, Any], settings: type[BaseModel]) -> Problem:
    """From an entry of pydantic's `ValidationError.errors` about these settings."""
    location, context = entry["loc"], entry.get("ctx", {})
    parts = (f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in location)
    path = "".join(parts).removeprefix(".")
    kind: str = entry["type"]
    message = _MESSAGES.get(kind) or _MESSAGES.get(kind.partition("_")[0])
    if kind == "extra_forbidden":
        table: Any = settings
        for name in location[:-1]:
            table = table.model_fields[name].annotation
        allowed = f"is no setting, allowed are {', '.join(table.model_fields)}"
    elif kind == "value_error":
        allowed = str(context["error"])
    else:
        allowed = message.format_map(context) if message else entry["msg"]
    return Problem(path, entry["input"], allowed)
