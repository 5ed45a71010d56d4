"""The `tickring-server` command."""

import asyncio
import os
import sys
from functools import partial

from server import options
from server.ports import PortInUse
from server.probes import ProbeServer
from server.problems import Problem, SettingsError
from server.repository import RepositoryError, load_repository
from server.security import check_security, warn_of_security
from server.settings import Settings, bundled_repository, load_settings
from server.supervisor import Supervisor
from server.telemetry import logs

EXIT_MISUSE = 2


def main() -> None:
    """Serves until SIGTERM or SIGINT.

    Exit codes: 0 drained, 1 failed, 2 a setting or the model repository is wrong.
    """
    parsed = options.parse(sys.argv[1:])
    load = partial(
        load_settings, parsed.overrides, config=parsed.config, profile=parsed.profile, environ=os.environ
    )
    try:
        settings = load()
        if unserved := _not_served_yet(settings):
            raise SettingsError(unserved)
        check_security(settings)
        if parsed.print_config:
            print(settings.to_toml(), end="")
            return
        path = settings.models.repository or bundled_repository()
        repository = load_repository(path, default_model=settings.models.default_model)
    except (SettingsError, RepositoryError) as error:
        for line in str(error).splitlines():
            print(line, file=sys.stderr)
        sys.exit(EXIT_MISUSE)
    if parsed.check_config:
        print("configuration is valid")
        return

    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    try:
        sys.exit(asyncio.run(_serve(settings, Supervisor(settings, repository, load))))
    except SettingsError as error:  # what only a look at this machine shows: no such device
        print(error, file=sys.stderr)
        sys.exit(EXIT_MISUSE)
    except PortInUse as error:
        sys.exit(f"tickring-server: {error}")


def _not_served_yet(settings: Settings) -> list[Problem]:
    """Settings that this version would ignore."""
    asked = {
        "cache.enabled": settings.cache.enabled or None,
        "telemetry.otlp_endpoint": settings.telemetry.otlp_endpoint,
    }
    return [
        Problem(path, value, "is not served by this version yet")
        for path, value in asked.items()
        if value is not None
    ]


async def _serve(settings: Settings, supervisor: Supervisor) -> int:
    probes = ProbeServer(settings.server.host, settings.server.http_port, supervisor)
    await probes.start()
    warn_of_security(settings)
    supervisor.status_url = f"http://{settings.server.target(probes.port)}/status"
    try:
        return await supervisor.run()
    finally:
        probes.close()


if __name__ == "__main__":
    main()
