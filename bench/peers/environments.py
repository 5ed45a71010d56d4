"""A virtual environment for each peer, with its own pins, so that none of them is a dependency of ours."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / "build" / "peers"

_VERSIONS = (
    "import importlib.metadata, json, sys; "
    "print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))"
)


def interpreter(name: str) -> Path:
    """That of a peer; installs it where `requirements-NAME.txt` has changed since, or never was installed."""
    requirements = HERE / f"requirements-{name}.txt"
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    # Written last: an installation that broke off is done again.
    installed = folder / "installed.txt"
    wanted = f"# Python {platform.python_version()}\n{requirements.read_text()}"
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {name} into {folder.relative_to(HERE.parents[1])}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    installed.write_text(wanted)
    return python


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Of packages that are installed for an interpreter."""
    command = [str(python), "-c", _VERSIONS, *packages]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
