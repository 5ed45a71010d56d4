"""How the commands of `tickring admin` show settings and status."""

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from client.admin_info import EngineModelStatus, ServerStatus, SettingInfo
from client.cli_output import console, one_line

# What is longer stands out of its column.
VALUE_WIDTH = 24
_S_PER_UNIT = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def print_settings(settings: Iterable[SettingInfo]) -> None:
    """One line for each, however wide the window is: a path that is cut or folded is of no use to grep."""
    rows = [("path", "value", "origin")]
    rows += [(setting.path, one_line(setting.value), setting.origin) for setting in settings]
    path_width = max(len(path) for path, _, _ in rows)
    value_width = min(VALUE_WIDTH, max(len(value) for _, value, _ in rows))
    for path, value, origin in rows:
        print(f"{path:<{path_width}}  {value:<{value_width}}  {origin}")


def print_status(status: ServerStatus) -> None:
    """A line and three tables: front ends, engines, and models on engines."""
    out = console()
    out.print(f"up {_duration(status.uptime_ns)}, settings version {status.settings_version}")
    frontends = Table("front end", "restarts", "admitted", "open", "ended", "slots free")
    for frontend in status.frontends:
        frontends.add_row(
            frontend.name,
            str(frontend.restarts),
            str(frontend.admitted),
            str(frontend.open),
            _counts(frontend.ended),
            str(frontend.slots_free),
        )
    engines = Table("engine", "device", "", "restarts", "waiting", "batches", "completed")
    models = Table("model", "on", "queued", "target", "ms: median, high")
    for engine in status.engines:
        engines.add_row(
            engine.name,
            engine.device,
            "ready" if engine.ready else "not ready",
            str(engine.restarts),
            str(engine.waiting),
            str(engine.batches),
            str(engine.completed),
        )
        for model in engine.models:
            models.add_row(
                f"{model.model_name}\nversion {model.model_version}",
                engine.name,
                _counts(model.queued),
                str(model.target_size),
                _latency(model),
            )
    for table in (frontends, engines, models):
        out.print(table)
    corrupt = {process.name: process.corrupt for process in status.frontends}
    corrupt |= {process.name: process.corrupt for process in status.engines}
    for name, count in corrupt.items():
        if count:
            out.print(f"{name} has found {count} corrupt entries: a bug, please report it")


def model_line(name: str, versions: Sequence[tuple[str, str]]) -> str:
    """A model in one line, `versions` as number and state."""
    return f"{name}: {', '.join(f'version {version} {state}' for version, state in versions)}"


def _counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count} {name}" for name, count in counts.items() if count) or "-"


def _latency(model: EngineModelStatus) -> str:
    """Of each batch size."""
    return "\n".join(
        f"{entry.bucket}: {entry.median_ns / 1e6:.3f} {entry.high_ns / 1e6:.3f}" for entry in model.latency
    )


def _duration(ns: int) -> str:
    """Its two largest units."""
    left_s = ns // 1_000_000_000
    parts: list[str] = []
    for unit, unit_s in _S_PER_UNIT:
        count, left_s = divmod(left_s, unit_s)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
