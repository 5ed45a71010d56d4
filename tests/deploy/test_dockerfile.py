"""Dockerfile.gpu as it stands: nobody here can build it, so what can be read off it is checked."""

import re
from pathlib import Path, PurePath

from server.settings import ServerTable
from tests.deploy.dockerfile import DOCKERFILE, let_through, stages
from tests.test_repo import ROOT

BUILD, DEPENDENCIES, RUN = stages()
COMPILERS = re.compile(r"apt-get|g\+\+|gcc|clang|build-essential|\bcmake\b|build_wheel")


def test_what_it_copies_exists_and_reaches_the_builder() -> None:
    """.dockerignore lets through what COPY names, and nothing else."""
    sources = {source for stage in (BUILD, DEPENDENCIES, RUN) for source in stage.copied()}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not let_through(PurePath(source))] == []
    exceptions = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert [name for name in exceptions if not any(covers(name, source) for source in sources)] == []
    for name in (
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
        "server/__pycache__/x.pyc",
        "key.pem",
    ):
        assert not let_through(PurePath(name)), name


def covers(folder: str, path: str) -> bool:
    return PurePath(path).is_relative_to(folder)


def test_every_script_is_used_and_every_used_one_exists() -> None:
    """A stage has copied what it runs."""
    used = set()
    for stage in (BUILD, DEPENDENCIES, RUN):
        copied = set(stage.copied())
        ran = {name for rest in stage.all("RUN") for name in re.findall(r"deploy/image/[\w.]+", rest)}
        assert ran <= copied
        used |= copied
    assert {name for name in used if name.startswith("deploy/")} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy" / "image").iterdir() if path.is_file()
    }


def test_the_image_that_runs_has_no_compiler() -> None:
    """Nor is anything of the stage with one in it but the wheel."""
    assert any(COMPILERS.search(rest) for rest in BUILD.all("RUN"))
    assert [rest for rest in RUN.all("RUN") if COMPILERS.search(rest)] == []
    assert [rest for rest in RUN.all("COPY") if "--from" in rest] == ["--from=build /wheels /wheels"]
    assert BUILD.base == RUN.base == "${BASE}"
    assert re.search(r"^ARG BASE=python:3\.1[123]-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)


def test_it_runs_as_somebody_who_is_not_root() -> None:
    """By number, and nothing that follows writes into the image."""
    (user,) = RUN.all("USER")
    uid, gid = map(int, user.split(":"))
    assert uid > 0
    assert gid > 0
    after = [name for name, _ in RUN.lines[RUN.lines.index(("USER", user)) :]]
    assert {"RUN", "COPY", "ADD"} & set(after) == set()


def test_what_a_container_is_told() -> None:
    """Entry point, health check, ports, signal; and what NVIDIA's runtime is asked for."""
    assert RUN.json("ENTRYPOINT") == ["tickring-server", "--host", "0.0.0.0"]
    assert RUN.all("CMD") == []
    assert RUN.all("STOPSIGNAL") == ["SIGTERM"]
    defaults = ServerTable()
    assert RUN.all("EXPOSE") == [f"{defaults.grpc_port} {defaults.http_port} {defaults.admin_port}"]
    python, *_, check = RUN.json("HEALTHCHECK")
    assert Path(python).parent.as_posix() == RUN.environment["PATH"].split(":")[0]
    assert RUN.copied()["deploy/image/healthcheck.py"] == f"{Path(check).parent}/"
    assert RUN.environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert RUN.environment["NVIDIA_VISIBLE_DEVICES"] == "all"
