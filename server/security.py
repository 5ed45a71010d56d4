"""What is looked at before the service starts, so that it does not start with its door open by mistake."""

import ipaddress

import structlog

from server import auth, tls
from server.problems import Problem, SettingsError
from server.settings import Settings

log = structlog.get_logger()


def check_security(settings: Settings) -> None:
    """Raises SettingsError with all that is wrong with certificate and tokens, and where they are used."""
    problems: list[Problem] = []
    tokens_file = settings.auth.tokens_file
    try:
        if settings.tls.cert is not None:
            tls.load(settings.tls)
    except SettingsError as error:
        problems += error.problems
    try:
        if tokens_file is not None:
            auth.read_tokens(tokens_file)
    except SettingsError as error:
        problems += error.problems
    if _in_clear_text(settings) and not settings.auth.allow_clear_text:
        problems.append(
            Problem(
                "auth.allow_clear_text",
                settings.auth.allow_clear_text,
                f"must be true, or tls.cert set: tokens would cross the network in clear text to "
                f"{settings.server.host}",
            )
        )
    if problems:
        raise SettingsError(problems)


def warn_of_security(settings: Settings) -> None:
    """Logs what was allowed by the operator, but should not be forgotten."""
    tls.warn_of_key(settings.tls)
    if settings.auth.tokens_file is not None:
        auth.warn_of_tokens(settings.auth.tokens_file)
    host = settings.server.host
    if _in_clear_text(settings):
        log.warning("tokens cross the network in clear text", host=host)
    if settings.auth.tokens_file is None and settings.tls.client_ca is None and not is_loopback(host):
        log.warning("everybody who reaches this host may call", host=host)


def may_change_models(settings: Settings) -> bool:
    """Whether the main port takes calls that load and unload models, from whom tokens allow, if any."""
    return settings.auth.tokens_file is not None or is_loopback(settings.server.host)


def is_loopback(host: str) -> bool:
    """Whether nothing from another machine reaches this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_clear_text(settings: Settings) -> bool:
    host = settings.server.host
    return settings.auth.tokens_file is not None and settings.tls.cert is None and not is_loopback(host)
