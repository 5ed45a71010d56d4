"""Makes the tokens that callers show, and the lines by which a server knows them."""

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

# Nobody guesses 256 bits, so their plain hash can be kept where a password's could not.
TOKEN_BYTES = 32
DAY_S = 86_400.0


class NewRole(StrEnum):
    """What a token is for; the server knows which RPC takes which."""

    PREDICT = "predict"
    OBSERVE = "observe"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, and its table for the server's file, which does not hold it."""

    token: str
    entry: str


def new_token(name: str, roles: Sequence[NewRole], expires_days: float | None, now_s: float) -> NewToken:
    """Raises ValueError for a name that the server would not take."""
    if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise ValueError(f"{name!r} is not a name of letters, digits, '.', '_' and '-', up to 64")
    token = f"tr_{secrets.token_urlsafe(TOKEN_BYTES)}"
    lines = [
        f'[tokens."{name}"]',
        f"roles = {json.dumps([str(role) for role in dict.fromkeys(roles)])}",
        f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
    ]
    if expires_days is not None:
        end = datetime.fromtimestamp(now_s + expires_days * DAY_S, UTC)
        lines.append(f"expires = {end:%Y-%m-%dT%H:%M:%SZ}")
    return NewToken(token, "\n".join(lines) + "\n")
