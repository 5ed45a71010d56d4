"""Who may call what: roles, tokens, and the file that holds what tokens hash to.

A token is 32 random bytes as text, so its plain SHA-256 is as hard to turn back as the token is to guess;
slow hashes are for passwords, which are short. `tickring token` makes tokens and the lines of this file:

    [tokens.engine-1]
    roles = ["predict"]
    sha256 = "<64 hexadecimal digits>"
    expires = 2030-01-01T00:00:00Z  # may be left out
"""

import hashlib
import hmac
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from scheduler.errors import RequestError
from server.problems import Problem, SettingsError
from server.watched import Signature, open_to_others, signature

SETTING = "auth.tokens_file"
METADATA = "authorization"
# A token that nobody has seen yet is compared with all of them.
MAX_TOKENS = 256
MAX_FILE_BYTES = 1 << 20
# A token can be written in several ways, as the scheme is in either case.
HEADERS_KEPT = 1024
MAX_NAME = 64

log = structlog.get_logger()


class Role(StrEnum):
    """What a token is for. One token may have several roles."""

    PREDICT = "predict"
    OBSERVE = "observe"
    ADMIN = "admin"


ANY: Final = frozenset(Role)
_PREDICT: Final = frozenset({Role.PREDICT})
_ADMIN: Final = frozenset({Role.ADMIN})
_WATCH: Final = frozenset({Role.OBSERVE, Role.ADMIN})
# Of a method, or else of its service, which roles may call it; None: everybody, with a token or without.
# Health is open because load balancers and gRPC's own health checks send no token. What is not here takes
# the role admin, so a method that somebody forgets is closed.
_ALLOWED: Final[Mapping[str, frozenset[Role] | None]] = MappingProxyType(
    {
        "/grpc.health.v1.Health": None,
        "/grpc.reflection.v1alpha.ServerReflection": ANY,
        "/tickring.v1.InferenceService": _PREDICT,
        "/tickring.v1.ModelService": ANY,
        "/tickring.v1.AdminService/GetSettings": _WATCH,
        "/tickring.v1.AdminService/GetStatus": _WATCH,
        "/inference.GRPCInferenceService/ServerLive": None,
        "/inference.GRPCInferenceService/ServerReady": None,
        "/inference.GRPCInferenceService/ModelInfer": _PREDICT,
        "/inference.GRPCInferenceService/ModelStreamInfer": _PREDICT,
        "/inference.GRPCInferenceService/RepositoryModelLoad": _ADMIN,
        "/inference.GRPCInferenceService/RepositoryModelUnload": _ADMIN,
        "/inference.GRPCInferenceService/TraceSetting": _ADMIN,
        "/inference.GRPCInferenceService/LogSettings": _ADMIN,
        "/inference.GRPCInferenceService": ANY,
    }
)


def allowed(method: str) -> frozenset[Role] | None:
    """The roles that may call this, "/service/method"; None: no token is needed."""
    if method in _ALLOWED:
        return _ALLOWED[method]
    return _ALLOWED.get(method.rpartition("/")[0], _ADMIN)


class Unauthenticated(RequestError):
    """Nobody knows who calls. `reason`: TOKEN_MISSING, TOKEN_UNKNOWN or TOKEN_EXPIRED."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class PermissionDenied(RequestError):
    """The caller may not call this. `reason`: ROLE_MISSING, or TOKENS_NOT_SET where nobody may."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a token belongs to. `expires_s` in seconds since 1970; None: never."""

    name: str
    roles: frozenset[Role]
    digest: bytes
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What one state of the file says, and the headers that were recognised by it. Replaced as a whole, so
    that a thread that reads the file anew leaves no header of the old state in the new one.
    """

    callers: tuple[Caller, ...]
    headers: dict[str | bytes, Caller]


class Tokens:
    """The tokens of one file, as it was when last read whole and without a mistake.

    Used from one event loop; only `refresh` may run in another thread.
    """

    def __init__(self, path: Path, now_s: Callable[[], float] = time.time) -> None:
        """Raises SettingsError where the file cannot be used."""
        self._path = path
        self._now_s = now_s
        self._signature: Signature = signature(path)
        self._known = _Known(read_tokens(path), {})

    def refresh(self) -> bool:
        """Reads the file again if it has changed; a mistake in it is logged once, and changes nothing."""
        found = signature(self._path)
        if found == self._signature:
            return False
        self._signature = found
        try:
            callers = read_tokens(self._path)
        except SettingsError as error:
            log.error("tokens not reloaded, the old ones stay", problems=str(error).splitlines())
            return False
        self._known = _Known(callers, {})
        log.info("tokens reloaded", tokens=[caller.name for caller in callers])
        return True

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Returns where this call is allowed.

        Raises:
            Unauthenticated: no token, or none that is in the file, or one that has expired.
            PermissionDenied: its roles do not include the one that this method needs.
        """
        roles = allowed(method)
        if roles is None:
            return
        caller = self.caller(metadata)
        if roles.isdisjoint(caller.roles):
            raise PermissionDenied(
                f"{method} takes a token with the role {' or '.join(sorted(roles))}; "
                f"{caller.name} has {', '.join(sorted(caller.roles))}",
                reason="ROLE_MISSING",
            )

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who calls, by the first `authorization` of the metadata. Raises Unauthenticated."""
        for name, value in metadata:
            if name == METADATA:
                # Only what was found good is in here, and a dict compares a string with another only where
                # their keyed 64-bit hashes are equal: its timing says nothing about a token.
                caller = self._known.headers.get(value) or _recognise(self._known, value)
                if caller.expires_s is not None and self._now_s() >= caller.expires_s:
                    raise Unauthenticated(f"the token of {caller.name} has expired", reason="TOKEN_EXPIRED")
                return caller
        raise Unauthenticated(
            "this server takes calls with a token: metadata authorization: Bearer <token>",
            reason="TOKEN_MISSING",
        )

    def recheck(self, method: str, caller: Caller) -> None:
        """As `check`, for a caller who was recognised earlier."""
        for known in self._known.callers:
            if known.digest == caller.digest:
                if known.expires_s is not None and self._now_s() >= known.expires_s:
                    raise Unauthenticated(f"the token of {known.name} has expired", reason="TOKEN_EXPIRED")
                roles = allowed(method)
                if roles is not None and roles.isdisjoint(known.roles):
                    raise PermissionDenied(
                        f"the token of {known.name} has lost its role", reason="ROLE_MISSING"
                    )
                return
        raise Unauthenticated(f"the token of {caller.name} has been revoked", reason="TOKEN_UNKNOWN")


def _recognise(known: "_Known", header: str | bytes) -> Caller:
    text = header if isinstance(header, str) else header.decode("latin-1")
    scheme, _, token = text.partition(" ")
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
    found = None
    for caller in known.callers:  # all of them, whether one fits or not
        if hmac.compare_digest(caller.digest, digest):
            found = caller
    if found is None or scheme.lower() != "bearer":
        raise Unauthenticated("the token is not one that this server knows", reason="TOKEN_UNKNOWN")
    if len(known.headers) < HEADERS_KEPT:
        known.headers[header] = found
    return found


def read_tokens(path: Path) -> tuple[Caller, ...]:
    """The tokens of a file. Raises SettingsError with every mistake, repeating no value of the file."""
    problems: list[Problem] = []

    def wrong(allowed: str) -> None:
        problems.append(Problem(SETTING, str(path), allowed))

    callers: list[Caller] = []
    for name, entry in _tables(path).items():
        if not re.fullmatch(rf"[\w.-]{{1,{MAX_NAME}}}", name, re.ASCII):
            wrong(f"names of tokens must be letters, digits, '.', '_' and '-', up to {MAX_NAME}")
            continue
        table: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
        if unknown := sorted(set(table) - {"roles", "sha256", "expires"}):
            wrong(f"tokens.{name} must have roles, sha256 and perhaps expires, not {', '.join(unknown)[:80]}")
        roles, digest, expires = table.get("roles"), table.get("sha256"), table.get("expires")
        if not isinstance(roles, list) or not roles or not all(map(_is_role, roles)):
            wrong(f"tokens.{name}.roles must be a list of {', '.join(Role)}")
        elif not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            wrong(f"tokens.{name}.sha256 must be 64 hexadecimal digits in lower case")
        elif expires is not None and not isinstance(expires, datetime):
            wrong(f"tokens.{name}.expires must be a date and time, such as 2030-01-01T00:00:00Z")
        else:
            callers.append(
                Caller(name, frozenset(map(Role, roles)), bytes.fromhex(digest), _seconds(expires))
            )
    if len({caller.digest for caller in callers}) < len(callers):
        wrong("must have every sha256 once")
    if not callers and not problems:
        wrong("must have a table [tokens.<name>]")
    if len(callers) > MAX_TOKENS:
        wrong(f"must have at most {MAX_TOKENS} tokens")
    if problems:
        raise SettingsError(problems)
    return tuple(callers)


def warn_of_tokens(path: Path) -> None:
    """Logs what is allowed but unwise about the file."""
    if open_to_others(path, writable=True):
        log.warning("others than its owner may write the file of tokens", setting=SETTING, file=str(path))


def _is_role(value: object) -> bool:
    return isinstance(value, str) and value in ANY


def _tables(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError([Problem(SETTING, str(path), f"must be at most {MAX_FILE_BYTES} bytes")])
        tables = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        allowed = f"must be a readable file: {error.strerror}"
        raise SettingsError([Problem(SETTING, str(path), allowed)]) from error
    except (ValueError, RecursionError) as error:  # brackets in brackets, hundreds of them
        # Not what tomllib says: it may quote the file, where somebody has put a token itself.
        raise SettingsError([Problem(SETTING, str(path), "must be TOML")]) from error
    if set(tables) - {"tokens"} or not isinstance(tables.get("tokens", {}), dict):
        raise SettingsError([Problem(SETTING, str(path), "must have nothing but tables [tokens.<name>]")])
    tokens: Mapping[str, Any] = tables.get("tokens", {})
    return tokens


def _seconds(expires: datetime | None) -> float | None:
    if expires is None:
        return None
    return (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()
