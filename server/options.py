"""The command line of `tickring-server`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.layers import AUTO, DEFAULT_PROFILE, PROFILES

_EPILOG = """\
Settings come in layers, the later ones winning: defaults, profile, --config file, environment
(TICKRING_SERVER__GRPC_PORT=9001), command line. The profile is that of --profile, else of TICKRING_PROFILE,
else of the line profile = "NAME" in the file.

Exit codes: 0 drained after SIGTERM or SIGINT, 1 failed, 2 a setting or the model repository is wrong.

Example: tickring-server --models ./models --grpc-port 9001 --profile off_hours
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `overrides` are nested settings tables of what was given, not yet validated."""

    overrides: dict[str, dict[str, str]]
    config: Path | None
    profile: str | None
    check_config: bool
    print_config: bool


def parse(arguments: Sequence[str]) -> Options:
    """Exits with 2 and a line on stderr when the arguments make no sense."""
    given = _parser().parse_args(arguments)
    overrides: dict[str, dict[str, str]] = {}
    for table, name in (
        ("server", "host"),
        ("server", "grpc_port"),
        ("server", "http_port"),
        ("server", "admin_port"),
        ("server", "frontends"),
        ("models", "repository"),
        ("executor", "device"),
    ):
        value = getattr(given, name)
        if value is not None:
            overrides.setdefault(table, {})[name] = value
    return Options(overrides, given.config, given.profile, given.check_config, given.print_config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tickring-server",
        description="Serves models over gRPC, the most urgent request first. "
        "Without arguments: the bundled model on 127.0.0.1:8001.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML")
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help=f"{', '.join(PROFILES)}, or {AUTO}: the first while the exchange of calendar.exchange is open, "
        f"else the second; default {DEFAULT_PROFILE}",
    )
    parser.add_argument(
        "--models", dest="repository", metavar="DIR", help="model repository; default: the bundled one"
    )
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--grpc-port", metavar="N", help="default 8001; 0 picks a free one")
    parser.add_argument("--http-port", metavar="N", help="/healthz and /readyz; default 8002")
    parser.add_argument("--admin-port", metavar="N", help="default 8003")
    parser.add_argument("--frontends", metavar="N|auto", help="front end processes; default auto")
    parser.add_argument(
        "--device", metavar="D", help="auto, cpu, cuda, cuda:N, or a list of cpu and cuda:N; default auto"
    )
    parser.add_argument("--check-config", action="store_true", help="validate everything, then exit")
    parser.add_argument("--print-config", action="store_true", help="print the settings as TOML, then exit")
    return parser
