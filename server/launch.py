"""The installed `tickring-server` command: says in one line what is missing, else serves."""

import sys
from importlib.util import find_spec

# One module of each distribution that only the extra brings.
NEEDED = ("grpc_reflection", "pydantic", "structlog", "torch", "uvloop")


def main() -> None:
    """Exit code 1 where the package was installed without its server extra."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sys.exit(f"tickring-server: {', '.join(missing)} missing; needed is pip install 'tickring[server]'")
    from server.__main__ import main as serve

    serve()
