"""Prints what tickring and these extras of it need, one requirement a line: requirements.py EXTRA..."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
print("\n".join([*project["dependencies"], *(line for lines in extras for line in lines)]))
