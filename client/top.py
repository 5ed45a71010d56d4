"""`tickring top`: what a server is doing, in one frame of at most 80 columns, drawn again every second."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.admin import AdminClient
from client.admin_info import ServerStatus
from client.bars import bars
from client.cli_status_output import number, percent, plain_table
from client.errors import PredictionError
from client.status_info import Activity, FlowActivity, ModelActivity, SloObjective

EVERY_S = 1.0
COLUMNS = 80
QUIT = (b"q", b"Q", b"\x03")
# Of what the server advises, and of its GPUs: as many lines as leave the rest of the frame in sight.
ADVICE_SHOWN = 3
MODELS_SHOWN = 6
_NAMED = {"p50_ms": "p50", "p95_ms": "p95", "p99_ms": "p99", "max_ms": "max"}
_STYLES = {"met": "green", "missed": "bold red", "no_data": "dim"}


async def show_once(client: AdminClient, target: str, out: Console) -> None:
    """Prints one frame. Raises PredictionError."""
    async with client:
        out.print(frame(await client.status(), target, blocks=_blocks(out)))


async def show(client: AdminClient, target: str, out: Console) -> None:
    """Draws until q is pressed, and goes on where the server is away for a while.

    Raises:
        PredictionError: it has not answered even once.
    """
    async with client:
        shown = frame(await client.status(), target, blocks=_blocks(out))
        left = asyncio.Event()
        with _keys(left), Live(shown, console=out, screen=True, auto_refresh=False) as live:
            live.refresh()
            while not left.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(left.wait(), EVERY_S)
                    return
                try:
                    shown = frame(await client.status(), target, blocks=_blocks(out))
                    live.update(shown, refresh=True)
                except PredictionError as error:
                    said = Text(f"no answer: {error.code.name}, shown is what was last seen", "bold red")
                    live.update(Group(said, shown), refresh=True)


def frame(status: ServerStatus, target: str, *, blocks: bool = True) -> Group:
    """All of it. `blocks`: whether the terminal can show block characters."""
    parts: list[RenderableType] = [_heading(status, target)]
    if not status.activity:
        return Group(*parts, Text("nothing is known yet"))
    second, minute = status.activity[0], status.activity[-1]
    parts += [_promises(status), Text(), _classes(second, minute, blocks), _legend(minute), Text()]
    parts += [_models(second, minute, blocks), Text(), _processes(status)]
    if line := _readings(status):
        parts += [Text(), line]
    for advice in status.slo.recommendations[:ADVICE_SHOWN]:
        parts.append(Text(f"{advice.setting}: {advice.text}", "yellow", overflow="fold"))
    parts.append(Text("q quits", "dim"))
    return Group(*parts)


def _heading(status: ServerStatus, target: str) -> Text:
    up_s = status.uptime_ns // 1_000_000_000
    up = f"{up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}"
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"tickring {target}  ", "bold")
    text.append(status.state, "green" if status.state == "ready" else "bold red")
    text.append(f"  up {up}  {status.profile}  settings {status.settings_version}")
    return text


def _promises(status: ServerStatus) -> Text:
    text = Text("promises ", no_wrap=True, overflow="crop")
    text.append(status.slo.state.replace("_", " "), _STYLES.get(status.slo.state, ""))
    if status.slo.windows:
        for objective in status.slo.windows[0].objectives:
            if said := _promise(objective):
                text.append("  ")
                text.append(said, _STYLES.get(objective.state, ""))
    return text


def _promise(objective: SloObjective) -> str:
    if objective.name in _NAMED and objective.good_ratio is not None:
        missed = " missed" if objective.state == "missed" else ""
        return f"{_NAMED[objective.name]} {percent(objective.good_ratio)}{missed}"
    if objective.name == "max_error_ratio" and objective.value is not None:
        missed = " missed" if objective.state == "missed" else ""
        return f"errors {percent(objective.value)}{missed}"
    return ""


def _classes(second: Activity, minute: Activity, blocks: bool) -> Table:
    table = plain_table("class", "req/s", "1 min", "fail/s", "p50", "p99", "reply 99", "depth")
    table.add_column("waits, 1 min", no_wrap=True)
    lately: dict[str, FlowActivity] = {flow.priority: flow for flow in second.classes}
    for flow in minute.classes:
        now = lately[flow.priority]
        table.add_row(
            flow.priority,
            number(now.requests_per_s),
            number(flow.requests_per_s),
            Text(number(flow.failed_per_s), "red" if flow.failed_per_s else ""),
            number(flow.wait_p50_ms),
            number(flow.wait_p99_ms),
            number(flow.request_p99_ms),
            str(now.depth),
            bars(flow.wait_columns, blocks=blocks),
        )
    return table


def _legend(activity: Activity) -> Text:
    bounds = " ".join(f"{bound:g}" for bound in activity.columns_ms)
    return Text(f"waits, p50 and p99 of the wait in ms; columns up to {bounds} ms, more", "dim")


def _models(second: Activity, minute: Activity, blocks: bool) -> Table:
    table = plain_table("model", "batch/s", "rows/s", "mean", "target", "p50", "p99")
    table.add_column("compute, 1 min", no_wrap=True)
    lately: dict[str, ModelActivity] = {model.model_name: model for model in second.models}
    for model in minute.models[:MODELS_SHOWN]:
        now = lately[model.model_name]
        table.add_row(
            model.model_name,
            number(now.batches_per_s),
            number(now.rows_per_s),
            number(model.mean_batch),
            str(now.target_size),
            number(model.compute_p50_ms),
            number(model.compute_p99_ms),
            bars(model.compute_columns, blocks=blocks),
        )
    return table


def _processes(status: ServerStatus) -> Table:
    table = plain_table("process", "items in it", "restarts")
    table.add_column("", no_wrap=True, overflow="crop")
    for frontend in status.frontends:
        table.add_row(
            frontend.name, str(frontend.open), str(frontend.restarts), f"{frontend.slots_free} slots free"
        )
    for engine in status.engines:
        said = f"{engine.device}, {engine.batches} batches" + ("" if engine.ready else ", not ready")
        table.add_row(
            engine.name,
            str(engine.waiting),
            str(engine.restarts),
            Text(said, "" if engine.ready else "bold red"),
        )
    return table


def _readings(status: ServerStatus) -> Text | None:
    """Ratios alone: they are what there is room for, and what says whether something is short."""
    ratios = {
        name.replace("_utilization_ratio", "").replace("_ratio", ""): value
        for name, value in status.readings.items()
        if "_ratio" in name
    }
    if not ratios:
        return None
    said = "  ".join(f"{name} {value:.0%}" for name, value in ratios.items())
    return Text(said, no_wrap=True, overflow="crop")


def _blocks(out: Console) -> bool:
    return (out.encoding or "").lower().startswith("utf")


@contextlib.contextmanager
def _keys(left: asyncio.Event) -> Iterator[None]:
    """Sets `left` when somebody presses a key that quits. Of a terminal, which is put back as it was."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        typed = os.read(stdin, 64)
        if not typed or any(key in typed for key in QUIT):
            left.set()

    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def is_terminal(streams: Sequence[object]) -> bool:
    """Whether all of them are, so that keys come from there and a frame can be drawn over the last."""
    return all(getattr(stream, "isatty", lambda: False)() for stream in streams)
