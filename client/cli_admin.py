"""`tickring admin`: what an operator does with a running server. See docs/admin.md."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from client.admin import CHANGE_TIMEOUT_S, AdminClient
from client.admin_info import ServerStatus, SettingInfo, SettingsChange, SettingsInfo
from client.channel import DEFAULT_ADMIN_TARGET
from client.cli_admin_output import model_line, print_settings, print_status
from client.cli_input import BadInput
from client.cli_options import (
    AdminTarget,
    ClearText,
    Json,
    Timeout,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    open_admin_client,
)
from client.cli_output import model_json, print_json
from client.model_info import ModelInfo

app = typer.Typer(
    help="Changes a running server, and shows what it is doing.",
    rich_markup_mode=None,
)

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="The model's folder in the repository.")]
ModelVersion = Annotated[str, typer.Option("--version", metavar="V", help="One version of it.")]


@app.command(epilog="Example: tickring admin settings scheduler telemetry.log_level")
def settings(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Settings or tables; all where absent.")
    ] = None,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Print settings: path, value, and where the value comes from."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    found = asyncio.run(_settings(client))
    chosen = _chosen(found.settings, paths or [])
    if as_json:
        print_json({**asdict(found), "settings": [asdict(setting) for setting in chosen]})
    else:
        print_settings(chosen)


@app.command(name="set", epilog="Example: tickring admin set scheduler.latency_budget_ms=8 --check")
def set_(
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="PATH=VALUE", help="Settings and their new values.")
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Take back what was set at run time; repeatable."),
    ] = None,
    expect_version: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Only if the settings are of this version; see settings --json."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would change, and change nothing.")
    ] = False,
    timeout: Timeout = None,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Change settings, all of them or none."""
    updates = updates_of(assignments or [], unset or [])
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    change = asyncio.run(_update(client, updates, expect_version, check, timeout or CHANGE_TIMEOUT_S))
    if as_json:
        print_json(asdict(change))
    else:
        verb = "would change" if check else "changed"
        print(f"version {change.version}, {verb}: {', '.join(change.changed_paths) or 'nothing'}")


@app.command(epilog="Example: tickring admin load sp500_direction --version 2")
def load(
    name: ModelName,
    version: ModelVersion = "",
    timeout: Timeout = None,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Load a model, by its manifest as it is now: the newest version where none is named."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    model = asyncio.run(_load(client, name, version, timeout or CHANGE_TIMEOUT_S))
    if as_json:
        print_json(model_json(model))
    else:
        print(model_line(model.name, [(entry.version, entry.state) for entry in model.versions]))


@app.command(epilog="Example: tickring admin unload sp500_direction --version 1")
def unload(
    name: ModelName,
    version: ModelVersion = "",
    timeout: Timeout = None,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Take a model out of service: all versions where none is named."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    asyncio.run(_unload(client, name, version, timeout or CHANGE_TIMEOUT_S))
    if as_json:
        print_json({"unloaded": name, "version": version or None})
    else:
        print(f"unloaded {name} version {version}" if version else f"unloaded {name}")


@app.command(epilog="Example: tickring admin status --json | jq .frontends[].open")
def status(
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Print what was admitted, how it ended, what is queued, and how long batches take."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    found = asyncio.run(_status(client))
    if as_json:
        print_json(asdict(found))
    else:
        print_status(found)


@app.command(epilog="Example: tickring admin drain")
def drain(
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """End the server as SIGTERM does: what is in flight is answered, nothing new is taken."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    asyncio.run(_drain(client))
    if as_json:
        print_json({"draining": True})
    else:
        print("draining")


def _chosen(settings: Sequence[SettingInfo], paths: Iterable[str]) -> list[SettingInfo]:
    """Those with one of these paths, or in one of these tables; all where there are none."""
    wanted = list(paths)
    for path in wanted:
        if not any(_is_in(setting.path, path) for setting in settings):
            tables = dict.fromkeys(setting.path.partition(".")[0] for setting in settings)
            raise BadInput(f"the server has no setting {path!r}; it has {', '.join(tables)}")
    return [s for s in settings if not wanted or any(_is_in(s.path, path) for path in wanted)]


def _is_in(path: str, table: str) -> bool:
    return path == table or path.startswith(f"{table}.")


def updates_of(assignments: Iterable[str], unset: Iterable[str] = ()) -> dict[str, str | None]:
    """New values by path, None for those that are taken back. Raises `typer.BadParameter`."""
    updates: dict[str, str | None] = {}
    given: list[tuple[str, str | None]] = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not path or not equals:
            raise typer.BadParameter(
                f"{text!r} is not allowed; PATH=VALUE, such as telemetry.log_level=debug"
            )
        given.append((path, value))
    given += [(path, None) for path in unset]
    for path, new in given:
        if path in updates:
            raise typer.BadParameter(f"{path!r} is given twice")
        updates[path] = new
    if not updates:
        raise typer.BadParameter("needed is a PATH=VALUE, or --unset PATH")
    return updates


async def _settings(client: AdminClient) -> SettingsInfo:
    async with client:
        return await client.settings()


async def _update(
    client: AdminClient,
    updates: dict[str, str | None],
    expected_version: int | None,
    validate_only: bool,
    timeout_s: float,
) -> SettingsChange:
    async with client:
        return await client.update_settings(
            updates, expected_version=expected_version, validate_only=validate_only, timeout_s=timeout_s
        )


async def _load(client: AdminClient, name: str, version: str, timeout_s: float) -> ModelInfo:
    async with client:
        return await client.load_model(name, version, timeout_s=timeout_s)


async def _unload(client: AdminClient, name: str, version: str, timeout_s: float) -> None:
    async with client:
        await client.unload_model(name, version, timeout_s=timeout_s)


async def _status(client: AdminClient) -> ServerStatus:
    async with client:
        return await client.status()


async def _drain(client: AdminClient) -> None:
    async with client:
        await client.drain()
