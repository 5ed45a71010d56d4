"""The `tickring-server` command."""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

from server import asks, options
from server.admin_port import AdminPort
from server.changes import Changes
from server.configuration import Configuration, load_configuration
from server.deep_health import DeepHealth
from server.lineup import NoRoom, Wishes, line_up
from server.overview import Overview
from server.ports import PortInUse
from server.probes import ProbeServer
from server.problems import Problem, SettingsError
from server.repository import Repository, RepositoryError, load_repository
from server.security import check_security, warn_of_security
from server.settings import Settings, bundled_repository
from server.supervisor import Supervisor
from server.telemetry import logs, prometheus
from server.trading_calendar import at_this_hour

EXIT_MISUSE = 2
# For answers to whoever has just drained the service.
ADMIN_GRACE_S = 1.0


def main() -> None:
    """Serves until SIGTERM or SIGINT.

    Exit codes: 0 drained, 1 failed, 2 a setting or the model repository is wrong.
    """
    parsed = options.parse(sys.argv[1:])
    try:
        configuration = load_configuration(
            parsed.overrides, config=parsed.config, profile=parsed.profile, environ=os.environ
        )
        telemetry = configuration.settings.telemetry
        logs.configure(telemetry.log_format, telemetry.log_level)
        configuration = at_this_hour(configuration)
        settings = configuration.settings
        if unserved := _not_served_yet(settings):
            raise SettingsError(unserved)
        check_security(settings)
        if parsed.print_config:
            print(configuration.to_toml(), end="")
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

    try:
        sys.exit(asyncio.run(_serve(configuration, path, repository)))
    except SettingsError as error:  # what only a look at this machine shows: no such device
        print(error, file=sys.stderr)
        sys.exit(EXIT_MISUSE)
    except PortInUse as error:
        sys.exit(f"tickring-server: {error}")


def _not_served_yet(settings: Settings) -> list[Problem]:
    """Settings that this version would ignore."""
    asked = {"cache.enabled": settings.cache.enabled or None}
    return [
        Problem(path, value, "is not served by this version yet")
        for path, value in asked.items()
        if value is not None
    ]


async def _serve(configuration: Configuration, path: Path, repository: Repository) -> int:
    settings = configuration.settings
    try:
        lineup = line_up(repository, Wishes(), settings.models.max_loaded)
    except NoRoom as error:
        raise SettingsError([Problem("models.max_loaded", settings.models.max_loaded, str(error))]) from error
    supervisor = Supervisor(settings, lineup)
    changes = Changes(supervisor, configuration, path, repository)
    overview = _overview(supervisor, changes)
    probes = ProbeServer(
        settings.server.host,
        settings.server.http_port,
        supervisor,
        overview.routes(),
        partial(prometheus.metrics, supervisor.totals),
    )
    admin = AdminPort(settings, changes, overview)
    await probes.start()
    await admin.start()
    warn_of_security(settings)
    supervisor.status_url = f"http://{settings.server.target(probes.port)}/status"
    supervisor.admin_port = admin.port
    supervisor.answer = partial(asks.answer, changes)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, changes.reload)
    following = [
        asyncio.create_task(changes.follow_repository()),
        asyncio.create_task(changes.follow_calendar()),
        asyncio.create_task(overview.run()),
    ]
    try:
        return await supervisor.run()
    finally:
        for task in following:
            task.cancel()
        probes.close()
        await admin.stop(ADMIN_GRACE_S)


def _overview(supervisor: Supervisor, changes: Changes) -> Overview:
    health = DeepHealth(supervisor, supervisor.trials.run, lambda: supervisor.revision.settings.slo.p99_ms)
    return Overview(supervisor, supervisor.totals, changes.current_settings, health)


if __name__ == "__main__":
    main()
