"""A Dockerfile as a list of stages, and what its .dockerignore lets through to the builder."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from tests.test_repo import ROOT

DOCKERFILE = ROOT / "Dockerfile.gpu"


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next. `lines` are (instruction, rest), continued lines joined."""

    name: str
    base: str
    lines: tuple[tuple[str, str], ...]

    def all(self, instruction: str) -> list[str]:
        """What follows each of these instructions."""
        return [rest for name, rest in self.lines if name == instruction]

    def json(self, instruction: str) -> list[str]:
        """The words of the one instruction of this kind, which has them as JSON at its end."""
        (rest,) = self.all(instruction)
        words: list[str] = json.loads(rest[rest.index("[") :])
        return words

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(word.split("=", 1) for rest in self.all("ENV") for word in shlex.split(rest))

    def copied(self) -> dict[str, str]:
        """Destination folder by source in the checkout, of every COPY that is not from another stage."""
        words = [rest.split() for rest in self.all("COPY") if not rest.startswith("--from=")]
        return {source: destination for *sources, destination in words for source in sources}


def stages() -> list[Stage]:
    """Those of Dockerfile.gpu, each with what it inherits from an earlier one."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            inherited = next((stage for stage in found if stage.name == base), None)
            found.append(Stage(name, inherited.base, inherited.lines) if inherited else Stage(name, base, ()))
        elif found:
            last = found[-1]
            found[-1] = Stage(last.name, last.base, (*last.lines, (instruction, rest.strip())))
    return found


def let_through(path: PurePath) -> bool:
    """Whether .dockerignore leaves this file of the checkout to the builder.

    Docker's own rule for the patterns that stand there: the last that matches counts, "!" makes an
    exception, and what matches a folder matches all below it.
    """
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            anywhere = line.startswith("**/")
            candidates = path.parts if anywhere else map(str, (path, *path.parents))
            if any(fnmatch(candidate, pattern) for candidate in candidates if candidate != "."):
                ignored = not line.startswith("!")
    return not ignored


def copy(rest: str, target: Path) -> None:
    """Does what COPY does from the checkout.

    `rest` are its sources and a destination folder, which is below `target` unless it is absolute.
    """
    *sources, destination = rest.split()
    for source in sources:
        top = ROOT / source
        for file in [top] if top.is_file() else (file for file in top.rglob("*") if file.is_file()):
            if let_through(file.relative_to(ROOT)):
                to = target / destination / (file.name if file == top else file.relative_to(top))
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)
