"""A scenario of the simulator: who sends what when, with which settings, to which device.

Scenarios are TOML files; those in `bench/scenarios/` go by their name. `[settings]` holds any settings of
the server, on top of a profile.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from bench.arrivals import Process
from bench.costs import Device
from scheduler.priority import PriorityClass, parse_priority
from server.configuration import load_settings
from server.layers import DEFAULT_PROFILE
from server.settings import Settings

FOLDER = Path(__file__).parent / "scenarios"


def _label(text: str) -> str:
    return parse_priority(text).label


Rows = Annotated[int, Field(ge=1, le=4096)]


class _Table(BaseModel):
    model_config = {"frozen": True, "extra": "forbid", "allow_inf_nan": False}


class Stream(_Table):
    """Requests of one class from one process.

    Attributes:
        rows: items of a request; of several numbers one is drawn for each request.
        timeout_ms: None is the timeout of the class.
    """

    priority: Annotated[str, AfterValidator(_label)]
    arrivals: Process
    rows: Rows | Annotated[tuple[Rows, ...], Field(min_length=1)] = 1
    timeout_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None

    @property
    def class_index(self) -> int:
        """Of its class."""
        return parse_priority(self.priority).index


class Scenario(_Table):
    """All of it. `balancer` spreads the requests of all streams over the replicas."""

    description: str
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 5.0
    profile: str = DEFAULT_PROFILE
    settings: dict[str, Any] = {}
    balancer: Literal["round_robin", "least_outstanding"] = "round_robin"
    device: Device
    streams: Annotated[tuple[Stream, ...], Field(min_length=1)]

    def server_settings(self) -> Settings:
        """What a replica is set to; the environment has no say. Raises SettingsError."""
        return load_settings(self.settings, profile=self.profile, environ={})

    @property
    def classes(self) -> list[PriorityClass]:
        """Those that send, most urgent first."""
        return [member for member in PriorityClass if member.index in {s.class_index for s in self.streams}]


def names() -> list[str]:
    """The scenarios that go by name."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_scenario(name_or_path: str) -> Scenario:
    """Reads a scenario. Raises OSError, or ValueError naming what is wrong with it."""
    path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    return Scenario.model_validate(tomllib.loads(path.read_text("utf-8")))
