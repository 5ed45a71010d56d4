"""The token of a campaign. It has not the role admin: what changes the server is refused unread."""

import hashlib
from pathlib import Path

TOKEN = "a-token-of-the-campaign"
AUTHORIZATION = ("authorization", f"Bearer {TOKEN}")


def write(folder: Path) -> Path:
    """The server's file of tokens."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    path = folder / "tokens.toml"
    path.write_text(f'[tokens.campaign]\nroles = ["predict", "observe"]\nsha256 = "{digest}"\n')
    return path
