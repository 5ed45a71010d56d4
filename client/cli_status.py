"""`tickring stats` and `tickring top`: what a running server does, asked of its admin port.

Of the admin port rather than of HTTP, because that one has TLS and tokens: what works from afar for
`tickring admin` works for these, with the role observe.
"""

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from client.admin import AdminClient
from client.admin_info import ServerStatus
from client.channel import DEFAULT_ADMIN_TARGET
from client.cli_options import (
    AdminTarget,
    ClearText,
    Json,
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    Token,
    open_admin_client,
)
from client.cli_output import console, print_json
from client.cli_status_output import print_health, print_slo, print_stats
from client.top import COLUMNS, is_terminal, show, show_once


def stats(
    slo: Annotated[
        bool, typer.Option("--slo", help="Whether promises are kept, and what to change.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also try a prediction of every model by every front end.")
    ] = False,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Print what the last minute was like, by model and class; asks the admin port.

    The exit code is 1 where --slo finds a promise missed, or --deep that a caller would not be answered.
    """
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    status = asyncio.run(_status(client, deep))
    if as_json:
        print_json(asdict(status.slo) if slo and not deep else asdict(status))
    elif slo:
        print_slo(status.slo)
        if status.health is not None:
            print_health(status.health)
    else:
        print_stats(status)
    missed = slo and status.slo.state == "missed"
    if missed or (status.health is not None and status.health.state == "unhealthy"):
        raise typer.Exit(1)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and exit, as where output is no terminal.")
    ] = False,
    target: AdminTarget = DEFAULT_ADMIN_TARGET,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: Token = None,
    allow_clear_text: ClearText = False,
    as_json: Json = False,
) -> None:
    """Show what the server is doing, every second, until q is pressed; asks the admin port."""
    client = open_admin_client(target, tls, tls_ca, tls_cert, tls_key, token, allow_clear_text)
    if as_json:
        print_json(asdict(asyncio.run(_status(client, False))))
        return
    out = console()
    if out.width > COLUMNS:
        out.width = COLUMNS
    if once or not is_terminal((sys.stdin, sys.stdout)):
        asyncio.run(show_once(client, target, out))
    else:
        asyncio.run(show(client, target, out))


async def _status(client: AdminClient, deep: bool) -> ServerStatus:
    async with client:
        return await client.status(deep=deep)
