"""What a running server says of itself over HTTP."""

import json
import urllib.request
from typing import Any

from tests.e2e.service import Service

PATIENCE_S = 30.0


def admitted(service: Service) -> int:
    """Items that this server has let in."""
    url: str = service.wait_for("ready")["status"]
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        frontends: list[dict[str, Any]] = json.load(answer)["frontends"]
    return sum(frontend["admitted"] for frontend in frontends)
