"""What the admin port says: settings, and what the server is doing."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.status_info import Activity, DeepHealth, SloReport


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting: `value` as it is set, empty where it is not; `origin` the layer that it comes from.

    `effect` says what a change takes: "LIVE", "ENGINES" or "RESTART".
    """

    path: str
    value: str
    origin: str
    effect: str


@dataclass(frozen=True, slots=True)
class SettingsInfo:
    """All settings in effect; `version` grows with every change, `profile` is the one in effect."""

    version: int
    profile: str
    settings: tuple[SettingInfo, ...]


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """The version of the settings now, and the paths whose value has changed, or would."""

    version: int
    changed_paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrontendStatus:
    """A process that speaks gRPC. `ended` counts items by how they ended, for example "result"."""

    name: str
    restarts: int
    admitted: int
    ended: Mapping[str, int]
    open: int
    undelivered: int
    corrupt: int
    slots_free: int


@dataclass(frozen=True, slots=True)
class BucketLatency:
    """How long batches that were padded to `bucket` take: median and 95th percentile."""

    bucket: int
    median_ns: int
    high_ns: int


@dataclass(frozen=True, slots=True)
class EngineModelStatus:
    """One version of a model on one engine. `queued` counts items by class, most urgent first."""

    model_name: str
    model_version: str
    queued: Mapping[str, int]
    target_size: int
    item_ns: int
    latency: tuple[BucketLatency, ...]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A process that runs the models on one device. `readings` are the device's, named by their unit."""

    name: str
    device: str
    ready: bool
    restarts: int
    readings: Mapping[str, float]
    taken: int
    completed: int
    lost: int
    discarded: int
    batches: int
    corrupt: int
    waiting: int
    models: tuple[EngineModelStatus, ...]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The whole service; counts are of items, from its start on.

    `state` is "starting", "ready", "not ready" or "draining"; `activity` the last second and the last minute;
    `readings` those of host, processes and GPUs, named by their unit; `health` is there where asked for.
    """

    uptime_ns: int
    settings_version: int
    frontends: tuple[FrontendStatus, ...]
    engines: tuple[EngineStatus, ...]
    state: str = ""
    profile: str = ""
    activity: tuple[Activity, ...] = ()
    readings: Mapping[str, float] = field(default_factory=dict)
    slo: SloReport = field(default_factory=SloReport)
    health: DeepHealth | None = None
